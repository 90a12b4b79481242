//! The fuzzers' targets (fuzz/README.md) over the seeds that are kept, and over mutations of those, the same each time: what a
//! fuzzer found once stays found, and no nightly toolchain is needed for it.

#[path = "fuzz/bodies.rs"]
mod bodies;
#[path = "fuzz/decoder.rs"]
mod decoder;
#[path = "fuzz/hostile.rs"]
mod hostile;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/pair.rs"]
mod pair;
#[path = "fuzz/rpc.rs"]
mod rpc;
mod support;

use std::path::Path;

/// The seeds of a target, and the runs that are left made of mutations.
fn smoke(target: &str, runs: usize, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = folder.read_dir().expect("seeds").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a file")).collect();
    for (file, seed) in files.iter().zip(&seeds) {
        judge(&file.display().to_string(), seed, run);
    }
    let mut mutations = mutate::Mutations::new(&seeds);
    for n in 0..runs.saturating_sub(seeds.len()) {
        judge(&format!("mutation {n}"), &mutations.next(), run);
    }
}

/// What fails is left for `cargo fuzz run`, in hexadecimal.
fn judge(name: &str, input: &[u8], run: fn(&[u8])) {
    if std::panic::catch_unwind(|| run(input)).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{name} fails: {hex}");
    }
}

#[test]
fn decoder_bears_its_seeds_and_mutations() {
    smoke("decoder", 20_000, decoder::run);
}

#[test]
fn bodies_bear_their_seeds_and_mutations() {
    smoke("bodies", 50_000, bodies::run);
}

#[test]
fn a_pair_bears_its_seeds_and_mutations() {
    smoke("pair", 3_000, pair::run);
}

#[test]
fn a_hostile_peers_seeds_and_mutations_are_borne() {
    smoke("hostile", 20_000, hostile::run);
}

#[test]
fn libvirts_rpc_bears_its_seeds_and_mutations() {
    smoke("rpc", 20_000, rpc::run);
}
