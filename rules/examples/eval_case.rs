//! `rules eval` alone, for a run of cases without a whole program: `cargo run -p ferrule-rules --example eval_case < cases`.

fn main() -> std::io::Result<()> {
    ferrule_rules::jq::enter();
    ferrule_rules::cli::eval(&mut std::io::stdin().lock(), &mut std::io::stdout().lock()).map(drop)
}
