//! Makes the messages of `proto/link.proto`, without protoc.

use std::io::{Error, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let file = "proto/link.proto";
    println!("cargo::rerun-if-changed={file}");
    println!("cargo::rerun-if-changed=build.rs");
    let set = protox::compile([file], ["proto"]).map_err(Error::other)?;
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| Error::other("no OUT_DIR"))?;
    // `Bytes`: what is read stays where it was received.
    prost_build::Config::new().bytes(["."]).out_dir(out).compile_fds(set)
}
