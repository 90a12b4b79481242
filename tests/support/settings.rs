use proptest::test_runner::{Config as ProptestConfig, RngSeed};

/// So many cases, the same each time, unless the environment asks for others (`PROPTEST_CASES`, `PROPTEST_RNG_SEED`).
pub(crate) fn settings(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let is_asked = |what| std::env::var_os(what).is_some();
    ProptestConfig {
        cases: if is_asked("PROPTEST_CASES") { asked.cases } else { cases },
        rng_seed: if is_asked("PROPTEST_RNG_SEED") { asked.rng_seed } else { RngSeed::Fixed(1) },
        ..asked
    }
}
