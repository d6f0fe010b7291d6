//! The fuzz targets without a fuzzer: the committed corpus, and seeded inputs, in `make test`.
//!
//! `FERRULE_SEED=n` runs one seed, `FERRULE_SEEDS=n` the first n of them; `FERRULE_FUZZ_INPUT=FILE` one input, such as one that
//! `make fuzz` left in `fuzz/artifacts`. With `FERRULE_FUZZ_SHRINK=FILE` that one is first made as small as it can be.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use ferrule_fuzz::seeds;

/// Says how to have a failure again.
struct Replay(&'static str, String);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(target, variable) = self;
            eprintln!("replay: {variable} cargo test --release -p ferrule-fuzz --test seeded {target}");
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// One input; with `FERRULE_FUZZ_SHRINK=FILE` first cut down to what is needed to fail, and written there.
fn one(input: &[u8], body: fn(&[u8])) {
    if let Some(path) = std::env::var_os("FERRULE_FUZZ_SHRINK") {
        let fails = |bytes: &[u8]| std::panic::catch_unwind(|| body(bytes)).is_err();
        let shrunk = seeds::shrink(input, fails);
        std::fs::write(path, &shrunk).unwrap();
        eprintln!("{} bytes of {} are enough: {shrunk:02x?}", shrunk.len(), input.len());
        return body(&shrunk);
    }
    body(input);
}

fn run(target: &'static str, body: fn(&[u8]), seeds: u64) {
    if let Some(path) = std::env::var_os("FERRULE_FUZZ_INPUT") {
        one(&std::fs::read(path).unwrap(), body);
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut corpus = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let _replay = Replay(target, format!("FERRULE_FUZZ_INPUT=$PWD/fuzz/seeds/{target}/{name}"));
        body(&bytes);
        corpus.push(bytes);
    }
    assert!(corpus.len() >= 10, "only {} inputs in {}", corpus.len(), folder.display());
    if let Some(seed) = number("FERRULE_SEED") {
        one(&seeds::input(seed, &corpus), body);
        return;
    }
    for seed in 0..number("FERRULE_SEEDS").unwrap_or(seeds) {
        let _replay = Replay(target, format!("FERRULE_SEED={seed}"));
        body(&seeds::input(seed, &corpus));
    }
}

#[test]
fn batch() {
    run("batch", ferrule_fuzz::batch, 20_000);
}

#[test]
fn codec() {
    run("codec", ferrule_fuzz::codec, 100_000);
}

#[test]
fn formats() {
    run("formats", ferrule_fuzz::formats, 10_000);
}

#[test]
fn http() {
    run("http", ferrule_fuzz::http, 20_000);
}

#[test]
fn proxy() {
    run("proxy", ferrule_fuzz::proxy, 100_000);
}

#[test]
fn rules() {
    run("rules", ferrule_fuzz::rules, 20_000);
}

#[test]
fn shard() {
    run("shard", ferrule_fuzz::shard, 40_000);
}

#[test]
fn websocket() {
    run("websocket", ferrule_fuzz::websocket, 40_000);
}
