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

/// A whole file; what is listened on, what else is said at the top, and behind it.
fn file(listen: &str, top: &str, more: &str) -> String {
    format!("listen = [{listen}]\n{top}\n[[target]]\nname = 'd'\npath = '/d'\n{more}\n")
}

const LOCAL: &str = "[[allow]]\nlocal = true\ntargets = ['d']";

#[test]
fn what_serve_would_fail_on_or_nobody_can_mean_is_a_mistake() {
    let long = "x".repeat(108);
    let top = |top: &str| file("'unix:/l'", top, LOCAL);
    let rule = |rule: &str| file("'unix:/l', 'tls://[::]:1'", "control = '/c'", &format!("[[allow]]\n{rule}"));
    let target = |target: &str| file("'unix:/l'", "", &format!("[[target]]\n{target}\n{LOCAL}"));
    let cases = [
        (file("", "", LOCAL), 1, "`listen` is an empty list"),
        (file("'unix:/l', 'unix://l'", "", LOCAL), 1, "listened on already"),
        (file("'tls://[::]:1', 'tls://[::]:1'", "", "[[allow]]\ndn = '*'\ntargets = ['d']"), 1, "listened on already"),
        (file("'tcp+systemd:a', 'tcp+systemd:a'", "", LOCAL), 1, "listened on already"),
        (file("\"unix:/\\u0000\"", "", LOCAL), 1, "no NUL"),
        (top("control = ''"), 2, "control"),
        (top(&format!("control = '/{long}'")), 2, "at most 107"),
        (top("control = '/l'"), 2, "listened on already"),
        (top("control = '/d'"), 5, "listened on already"),
        (top("metrics = 'unix:/l'"), 2, "listened on already"),
        (top("libvirt = 'unix:/l'"), 2, "listened on already"),
        (top("window = '1MiB'\nwindow_max = '4096'"), 3, "less than `window`"),
        (target("name = 'e'\npath = '/l'"), 8, "listened on already"),
        (target("name = 'e'\npath = \"/\\u0000\""), 8, "no NUL"),
        (target(&format!("name = 'e'\npath = '/{long}'")), 8, "at most 107"),
        (target("name = 'd'\npath = '/e'"), 7, "two targets are named `d`"),
        (target("name = 'v-*'\nbelow = '.'\npath = '*'"), 8, "begins with /"),
        (rule("local = true\ntargets = []"), 8, "`targets` is an empty list"),
        (rule("local = true\ntargets = ['d']\nkinds = []"), 9, "`kinds` is an empty list"),
        (rule("local = true\ntargets = ['d', 'e']"), 8, "no [[target]] has such a name"),
        (file("'unix:/l'", "", "[[allow]]\ndn = '*'\ntargets = ['d']"), 7, "cannot come"),
        (file("'unix:/l'", "", "[[allow]]\nname = '*'\ntargets = ['d']"), 7, "cannot come"),
        (file("'tcp://127.0.0.1:1'", "", "[[allow]]\nuid = 0\ntargets = ['d']"), 7, "cannot come"),
        (file("'unix:/l', 'tls://[::]:1'", "", LOCAL), 1, "somebody with a certificate"),
        (file("'unix:/l'", "", &format!("{LOCAL}\n[[allow]]\nuid = 0\ntargets = ['d']")), 10, "never asked"),
        (file("'unix:/l'", "", &format!("{LOCAL}\n[[allow]]\nlocal = true\ntargets = ['d']")), 10, "never asked"),
        (file("'tcp://127.0.0.1:1'", "libvirt = 'unix:/v'", LOCAL), 1, "only UNIX sockets and tls://"),
        (file("'unix:/l'", "libvirt = 'unix:/v'", "[[allow]]\nanyone = true\nlibvirt = true"), 8, "has to be known"),
    ];
    for (text, line, words) in cases {
        let found = mistakes(&text);
        assert!(
            found.len() == 1 && found[0].0 == line && found[0].1.contains(words),
            "{line}: {words}: {found:?}\n{text}"
        );
    }
    let twice = "[[target]]\nname = 'v-*'\nbelow = '/'\npath = '*/a'\n".repeat(2);
    assert_eq!(mistakes(&file("'unix:/l'", "", &(twice + LOCAL)))[0], (11, "two targets are named `v-*`".to_owned()));
}

#[test]
fn what_may_be_meant_is_none() {
    let migrating = "[[allow]]\nuid = 0\nlibvirt = true\n[[allow]]\nuid = 1\nmigrate = true\n[migration]\nbase = '/b'";
    for text in [
        // Nobody has a rule there, but may have a ticket.
        file("'unix:/l', 'tls://[::]:1'", "control = '/c'", LOCAL),
        file("'tcp://127.0.0.1:0', 'tcp://127.0.0.1:0'", "", LOCAL),
        file("'unix:/l'", "window = '512MiB'", LOCAL),
        file("'unix:/l'", "libvirt = 'unix:/v'", migrating),
        file("'unix:/l'", "", &format!("[[target]]\nname = 'e'\npath = '/d'\n{LOCAL}")),
        file(
            "'unix:/l', 'tls://[::]:1'",
            "",
            "[[allow]]\nuid = 0\ntargets = ['d']\n[[allow]]\nanyone = true\ntargets = ['*']",
        ),
    ] {
        assert!(read(&text).is_ok(), "{:?}\n{text}", read(&text));
    }
}

#[test]
fn each_of_several_mistakes_of_a_kind_has_its_own_line() {
    let text = "listen = [
    'unix:/l',
    'tcp://0.0.0.0:1',
    'tcp://[::]:2',
]
[[target]]
name = 'd'
path = '/d'
[[allow]]
uid = 1
targets = ['d']
[[allow]]
uid = 2
libvirt = true
[[allow]]
uid = 3
targets = ['d']
migrate = true
";
    let expected =
        [(3, "other hosts"), (4, "other hosts"), (14, "`libvirt` says not where"), (18, "[migration] is missing")];
    let found = mistakes(text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((line, words), (at, said)) in expected.iter().zip(&found) {
        assert!(line == at && said.contains(words), "{line}: {words}, in {found:#?}");
    }
}

#[test]
fn keys_are_tried_where_tls_is_listened_on_and_what_is_wrong_is_told_where_they_are_named() {
    let rule = "[[allow]]\ndn = '*'\ntargets = ['d']";
    let wrong = |pki: &Pki| Err(format!("{:?}", pki.directory));
    let told = |text: &str| {
        let mistakes = Settings::read(text, wrong).unwrap_err();
        mistakes.into_iter().map(|mistake| (mistake.line, mistake.sentence)).collect::<Vec<_>>()
    };
    assert_eq!(told(&file("'tls://[::]:1'", "pki = '/no'", rule)), [(2, "Some(\"/no\")".to_owned())]);
    assert_eq!(told(&file("'tls://[::]:1'", "", rule)), [(1, "None".to_owned())]);
    assert!(Settings::read(&file("'unix:/l'", "", LOCAL), wrong).is_ok());
}

#[test]
fn a_fronts_sockets_are_its_users_alone_unless_a_mode_is_said() {
    let mode = |top: &str, more: &str| {
        let rule = format!("{LOCAL}\n{more}");
        read(&file("'unix:/l'", top, &rule)).unwrap().permissions.mode
    };
    assert_eq!(mode("", ""), None);
    assert_eq!(mode("libvirt = 'unix:/v'", "libvirt = true"), Some(0o600));
    assert_eq!(mode("libvirt = 'unix:/v'\nsocket_mode = '0660'", "libvirt = true"), Some(0o660));
}
