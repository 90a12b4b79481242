//! The file of `serve --config`: read whole, or with at least one mistake, each on a line of the file.
#![no_main]
// They belong to the tool, of which this is one caller more.
#![allow(dead_code, unused_imports)]

#[path = "../../cli/src/config/mod.rs"]
mod config;
#[path = "../../cli/src/listen.rs"]
mod listen;
#[path = "../../cli/src/pki.rs"]
mod pki;
#[path = "../../cli/src/policy/mod.rs"]
mod policy;
#[path = "../../cli/src/values.rs"]
mod values;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(mistakes) = config::Settings::read(text) {
        let lines = 1 + text.matches('\n').count();
        assert!(!mistakes.is_empty() && mistakes.is_sorted());
        assert!(mistakes.iter().all(|mistake| (1..=lines).contains(&mistake.line) && !mistake.sentence.is_empty()));
    }
});
