//! What the tool says of disks when their streams end.

/// One NBD connection's export, and what was done on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) export: String,
    pub(crate) size: u64,
    pub(crate) written: u64,
    pub(crate) zeroed: u64,
    pub(crate) trimmed: u64,
    pub(crate) read: u64,
    pub(crate) flushes: u64,
}

/// Those that it has told of, one for each connection.
#[track_caller]
pub(crate) fn disks(stderr: &str) -> Vec<Disk> {
    let lines = stderr.lines().filter_map(|line| line.split_once(": disk \""));
    lines.map(|(_, disk)| parse(disk)).collect()
}

#[track_caller]
fn parse(line: &str) -> Disk {
    let (export, rest) = line.split_once("\" of ").expect("a name");
    let numbers = rest.split([' ', ',', ':']).filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
    let [size, written, zeroed, trimmed, read, flushes] = numbers[..] else { panic!("six numbers, not {line}") };
    Disk { export: export.to_owned(), size, written, zeroed, trimmed, read, flushes }
}

/// All connections to one export together.
#[track_caller]
pub(crate) fn sum(disks: &[Disk]) -> Disk {
    let first = disks.first().expect("a disk");
    let mut sum = Disk { export: first.export.clone(), size: first.size, ..Disk::default() };
    for disk in disks {
        assert_eq!((&disk.export, disk.size), (&sum.export, sum.size));
        sum.written += disk.written;
        sum.zeroed += disk.zeroed;
        sum.trimmed += disk.trimmed;
        sum.read += disk.read;
        sum.flushes += disk.flushes;
    }
    sum
}
