#![no_main]

#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/fuzz/pair.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
