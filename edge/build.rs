//! On 32-bit musl: a clock for std that does not end the program in 2038 (src/clock32.c).

fn main() {
    println!("cargo::rerun-if-changed=src/clock32.c");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}"));
    if target("ENV").as_deref() != Ok("musl") || target("POINTER_WIDTH").as_deref() != Ok("32") {
        return;
    }
    // As an object, so that it comes before libc's.
    for object in cc::Build::new().file("src/clock32.c").compile_intermediates() {
        println!("cargo::rustc-link-arg-bins={}", object.display());
    }
}
