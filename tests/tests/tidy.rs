//! House rules that would otherwise be forgotten: what the edge links, what may not stand in a file, how a file begins.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use ferrule_testkit::node::binary;
use ferrule_testkit::proc::output;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files of the checkout but what is built and git's own, with their paths from the root.
fn files() -> Vec<(String, Vec<u8>)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink()
                || [".git", "target", "dist", ".demo", "__pycache__"].contains(&name.as_str())
            {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    assert!(found.len() > 50, "the checkout has more files than {}", found.len());
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}

/// The packages that `package` is built from, by name.
fn dependencies(package: &str) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = output(Command::new(cargo).current_dir(root()).args([
        "tree",
        "--locked",
        "--package",
        package,
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]));
    tree.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn the_edge_links_no_kafka_client_no_openssl_and_no_grpc() {
    let edge = dependencies("ferrule-edge");
    assert!(edge.iter().any(|name| name == "ferrule-node"), "not a tree: {edge:?}");
    for name in [
        "rdkafka",
        "rdkafka-sys",
        "openssl-sys",
        "openssl-src",
        "tokio-postgres",
        "tonic",
        "h2",
        "prost",
        "ferrule-cloud",
        "ferrule-cluster-link",
        "ferrule-sink-kafka",
        "ferrule-store-postgres",
    ] {
        assert!(!edge.iter().any(|each| each == name), "ferrule-edge is built from {name}");
    }
    let cloud = dependencies("ferrule-cloud");
    assert!(cloud.iter().any(|name| name == "rdkafka-sys"), "this test would not find it: {cloud:?}");
    let links = dependencies("ferrule-cluster-link");
    for name in ["tonic", "h2", "prost"] {
        assert!(links.iter().any(|each| each == name), "this test would not find {name}: {links:?}");
    }

    // And the binary itself: OpenSSL's version string is in whatever links it, as one of librdkafka's errors is.
    let holds = |binary: &[u8], text: &str| binary.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let edge = std::fs::read(binary("ferrule-edge")).unwrap();
    let cloud = std::fs::read(binary("ferrule-cloud")).unwrap();
    for text in ["OpenSSL 3.", "Local: Broker transport failure"] {
        assert!(!holds(&edge, text), "ferrule-edge holds {text:?}");
        assert!(holds(&cloud, text), "this test would not find {text:?}");
    }
}

#[test]
fn the_pure_crates_know_no_runtime_and_no_files() {
    for package in [
        "ferrule-batch",
        "ferrule-mqtt",
        "ferrule-rules",
        "ferrule-outbox",
        "ferrule-broker",
        "ferrule-cluster",
        "ferrule-store",
    ] {
        for name in dependencies(package) {
            let impure = ["tokio", "mio", "rusqlite", "socket2", "rustls", "rdkafka"];
            assert!(!impure.contains(&name.as_str()), "{package} is built from {name}");
        }
    }
}

#[test]
fn every_crate_forbids_unsafe_code_or_says_why_not() {
    let mut roots = 0;
    let mut without = Vec::new();
    for (name, bytes) in files() {
        let is_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
        if !is_root {
            continue;
        }
        roots += 1;
        let text = String::from_utf8(bytes).unwrap();
        // A crate that needs it has `deny` from the workspace's lints, and a reason at each place.
        if !text.contains("#![forbid(unsafe_code)]") && !text.contains("unsafe_code, reason =") {
            without.push(name);
        }
    }
    assert!(without.is_empty(), "these do not forbid unsafe code: {without:?}");
    assert!(roots >= 15, "only {roots} crate roots found");
}

#[test]
fn every_source_file_begins_with_what_it_is() {
    let mut without = Vec::new();
    for (name, bytes) in files() {
        let text = String::from_utf8_lossy(&bytes);
        let fine = match name.rsplit('.').next() {
            // The test module of the file beside it needs no header of its own.
            _ if name.ends_with("/tests.rs") => true,
            Some("rs") => text.starts_with("//!") || text.starts_with("// @generated"),
            Some("sh") => {
                text.starts_with("#!/") && text.lines().nth(1).is_some_and(|line| line.starts_with("# "))
            }
            Some("py") => text.starts_with("\"\"\"") || text.starts_with("#!/"),
            _ => true,
        };
        if !fine {
            without.push(name);
        }
    }
    assert!(without.is_empty(), "these do not begin with a header that says what they are: {without:?}");
}

#[test]
fn no_file_names_the_place_it_was_written_at() {
    // In two parts each, so that this file does not.
    let words: Vec<String> = [
        ("/wo", "rk/main"),
        ("/wo", "rk/"),
        (".libr", "ary/"),
        ("farm-", "studio"),
        ("sub", "agent"),
        ("before", "-stop"),
        ("sha", "red/design"),
        ("sha", "red/reference"),
        ("sha", "red/kafka"),
        ("sha", "red/conformance"),
        ("sha", "red/cross"),
        ("source = \"spa", "rse+"),
        ("resolved\": \"", "http"),
    ]
    .map(|(a, b)| format!("{a}{b}"))
    .to_vec();
    let mut found = Vec::new();
    for (name, bytes) in files() {
        let text = String::from_utf8_lossy(&bytes);
        for (number, line) in (1..).zip(text.lines()) {
            found.extend(
                words
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{name}:{number}: {word}")),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_test_is_left_out_without_a_reason() {
    let ignored = concat!("#[ign", "ore]");
    for (name, bytes) in files() {
        if name.ends_with(".rs") {
            assert!(!String::from_utf8_lossy(&bytes).contains(ignored), "{name} has a test that is not run");
        }
    }
}

#[test]
fn shell_scripts_parse_and_may_be_run() {
    use std::os::unix::fs::PermissionsExt;
    let mut scripts = 0;
    for (name, bytes) in files() {
        if !bytes.starts_with(b"#!/usr/bin/env bash") && !bytes.starts_with(b"#!/bin/sh") {
            continue;
        }
        scripts += 1;
        let path = root().join(&name);
        output(Command::new("bash").arg("-n").arg(&path));
        assert!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0, "{name} may not be run");
    }
    assert!(scripts >= 3, "only {scripts} scripts found");
}

#[test]
fn both_licences_are_there() {
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(std::fs::read_to_string(root().join(name)).unwrap().len() > 1000, "{name}");
    }
}
