//! The file of `serve --config`: read whole, or with at least one mistake, each on a line of the file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(mistakes) = virbistream_cli::check_configuration(text) {
        let lines = 1 + text.matches('\n').count();
        assert!(!mistakes.is_empty() && mistakes.is_sorted());
        assert!(mistakes.iter().all(|(line, sentence)| (1..=lines).contains(line) && !sentence.is_empty()));
    }
});
