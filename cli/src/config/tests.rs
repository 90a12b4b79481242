use std::path::Path;

use virbistream::wire::kind;

use super::*;
use crate::bear_configuration;
use crate::policy::Who;

/// A seed of the fuzzer's, too.
const WHOLE: &str = include_str!("../../../fuzz/seeds/config/whole.toml");

#[test]
fn a_file_says_all_that_serve_needs() {
    let settings = read(WHOLE).unwrap();
    assert_eq!(settings.listen.len(), 2);
    assert_eq!((settings.session.window, settings.session.max_streams), (1 << 20, 100));
    assert_eq!(settings.session.memory_budget.bytes(), 64 << 20);
    assert_eq!((settings.bandwidth, settings.drain), (Some(1 << 30), Duration::from_secs(5)));
    assert_eq!((settings.permissions.mode, settings.threads.get()), (Some(0o660), 2));
    let [first, second, _] = &settings.rules[..] else { panic!("{:?}", settings.rules) };
    assert_eq!((&first.who, first.rights.sessions), (&Who::Uid(107), Some(4)));
    assert_eq!(first.rights.kinds, Some(vec![kind::DISK, kind::MEMORY]));
    assert_eq!((&second.who, second.rights.daemon), (&Who::Local, true));
}

/// Without looking for keys.
fn read(text: &str) -> Result<Settings, Vec<Mistake>> {
    Settings::read(text, |_| Ok(()))
}

/// Line 1 is the first of the text.
fn mistakes(text: &str) -> Vec<(usize, String)> {
    read(text).unwrap_err().into_iter().map(|mistake| (mistake.line, mistake.sentence)).collect()
}

#[test]
fn the_file_in_the_guide_is_one() {
    let guide = include_str!("../../../docs/migration.md");
    let file = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    read(&file.replace("/run/virbistream/vms", "/")).unwrap();
}

#[test]
fn the_fuzzers_seeds_are_borne() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/config");
    let files: Vec<_> = seeds.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 3, "{} has no seeds", seeds.display());
    for file in files {
        bear_configuration(&std::fs::read_to_string(&file).unwrap());
    }
}

#[test]
fn a_file_cut_anywhere_or_with_any_byte_changed_is_read_or_has_a_mistake() {
    for at in (0..WHOLE.len()).filter(|at| WHOLE.is_char_boundary(*at)) {
        bear_configuration(&WHOLE[..at]);
        for byte in ['\0', '"', '[', '-', '9', 'ä', '\n'] {
            let changed = format!("{}{byte}{}", &WHOLE[..at], WHOLE.get(at + 1..).unwrap_or_default());
            bear_configuration(&changed);
        }
    }
}

#[test]
fn every_mistake_is_told_with_its_line() {
    let found = mistakes(
        r#"listen = ["tcp://0.0.0.0:1", "what"]
windows = 3
window = "1"
[[target]]
name = "a"
[[target]]
name = "vm-*"
below = "/nowhere"
path = "*/x"
[[allow]]
uid = 1
local = true
targets = "a"
kinds = ["tape"]
[[allow]]
anyone = false
sessions = -1
"#,
    );
    let expected = [
        (1, "write"),
        (1, "can be reached from other hosts"),
        (2, "`windows` is not known"),
        (3, "at least 4096 bytes"),
        (4, "has `name` and `path`"),
        (6, "/nowhere"),
        (10, "a rule is for one of"),
        (13, "`targets` is a list"),
        (14, "tape"),
        (15, "a rule that allows nothing"),
        (16, "can only be true"),
        (17, "`sessions` is a number"),
    ];
    for (line, words) in expected {
        assert!(found.iter().any(|(at, said)| *at == line && said.contains(words)), "{line}: {words}, in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn what_is_no_toml_is_told_with_its_line_and_nothing_else() {
    assert_eq!(mistakes("listen = [\"unix:/a\"]\nfoo bar\n[[allow]\n").iter().map(|(line, _)| *line).min(), Some(2));
}

#[test]
fn nothing_is_open_by_leaving_something_out() {
    let found = mistakes("");
    for words in ["`listen` is missing", "nothing is offered", "nobody is let in"] {
        assert!(found.iter().any(|(line, said)| *line == 1 && said.contains(words)), "{words}, in {found:?}");
    }
    let without_rule = WHOLE.split("[[allow]]").next().unwrap();
    assert!(mistakes(without_rule)[0].1.contains("nobody is let in"));
}
