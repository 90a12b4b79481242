//! The numbers by which packets and rules are known.

use virbistream::wire::{
    Header, PROCEDURE_BASE, PROCEDURE_COUNT, PROGRAM, PacketType, Procedure, ProgramId, Rule, Status, VERSION,
};

const PROTOCOL: &str = include_str!("../docs/protocol.md");

#[test]
fn a_packet_is_ours_by_program_version_and_block_alone() {
    let ours = ProgramId::default();
    let hello = ours.header(Procedure::Hello, PacketType::Call, 1, Status::Ok);
    let is_ours = |header: Header| ours.owns(&header);
    assert!(is_ours(hello));
    assert!(is_ours(Header { kind: 99, serial: 99, status: 99, ..hello }), "its type, serial and status say nothing");
    assert!(is_ours(Header { procedure: PROCEDURE_BASE + PROCEDURE_COUNT - 1, ..hello }));
    assert!(!is_ours(Header { procedure: PROCEDURE_BASE + PROCEDURE_COUNT, ..hello }));
    assert!(!is_ours(Header { procedure: PROCEDURE_BASE - 1, ..hello }));
    assert!(!is_ours(Header { procedure: 0, ..hello }));
    assert!(!is_ours(Header { program: PROGRAM + 1, ..hello }));
    assert!(!is_ours(Header { version: VERSION + 1, ..hello }));
}

#[test]
fn a_block_at_the_end_of_the_numbers_is_whole() {
    for base in [0, u32::MAX - 255, u32::MAX - 10] {
        let ours = ProgramId { base, ..ProgramId::default() };
        for offset in 0..PROCEDURE_COUNT {
            let header = Header {
                procedure: base.wrapping_add(offset),
                ..ours.header(Procedure::Hello, PacketType::Call, 0, Status::Ok)
            };
            assert!(ours.owns(&header));
            assert_eq!(ours.offset(&header), offset);
        }
    }
}

#[test]
fn a_header_leads_back_to_its_procedure() {
    let ours = ProgramId { program: 7, version: 8, base: 1000 };
    for offset in 0..=7 {
        let procedure = Procedure::from_offset(offset).unwrap();
        let header = ours.header(procedure, PacketType::Message, 42, Status::Error);
        let expected = Header { program: 7, version: 8, procedure: 1000 + offset, kind: 2, serial: 42, status: 1 };
        assert_eq!(header, expected);
        assert_eq!(ours.offset(&header), offset);
    }
    assert_eq!(Procedure::from_offset(8), None, "RESUME is reserved");
    assert_eq!(Procedure::from_offset(u32::MAX), None);
}

#[test]
fn rules_have_the_numbers_and_names_of_the_protocol() {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((cells.next()?.parse::<u32>().ok()?, cells.next()?.to_owned(), cells.count()))
    };
    let documented: Vec<_> = PROTOCOL.lines().filter_map(row).filter(|row| row.2 == 2).collect();
    let documented: Vec<_> = documented.into_iter().map(|(number, name, _)| (number, name)).collect();
    let ours: Vec<_> = Rule::ALL.iter().map(|rule| (rule.number(), rule.name().to_owned())).collect();
    assert_eq!(ours, documented);
}

#[test]
fn a_rule_leads_from_its_number_and_shows_both() {
    for rule in Rule::ALL {
        assert_eq!(Rule::from_number(rule.number()), Some(*rule));
    }
    let known = (0..=1000).filter(|&number| Rule::from_number(number).is_some()).count();
    assert_eq!(known, Rule::ALL.len());
    assert_eq!(Rule::CreditOverrun.to_string(), "rule 14 (credit-overrun)");
}
