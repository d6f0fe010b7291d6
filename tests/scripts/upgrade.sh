#!/usr/bin/env bash
# Builds ferrule-cloud as it was at an earlier commit, and has a cluster of it become today's while clients publish and subscribe
# (tests/tests/cluster/rolling_upgrade.rs). FERRULE_OLD_COMMIT names the commit; what was built of it is kept in FERRULE_OLD_TARGET, target/upgrade
# if it is not said, so that the next run is short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

commit=$(git rev-parse --short "${FERRULE_OLD_COMMIT:-5091705}^{commit}")
target=${FERRULE_OLD_TARGET:-$PWD/target/upgrade}
folder=$(mktemp -d)
end() {
    git worktree remove --force "$folder/tree" 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT

git worktree add --quiet --detach "$folder/tree" "$commit"
(cd "$folder/tree" && CARGO_TARGET_DIR=$target cargo build --release --locked -p ferrule-cloud)
# Another build in that folder must not change it under the test.
cp "$target/release/ferrule-cloud" "$folder/ferrule-cloud"

FERRULE_OLD_COMMIT=$commit FERRULE_OLD_CLOUD=$folder/ferrule-cloud FERRULE_FAULT_RESULTS=${FERRULE_FAULT_RESULTS-$PWD/tests/results} \
    cargo test --release ${FERRULE_UPGRADE_PACKAGES:---workspace} --test cluster -- --nocapture --test-threads=1 rolling_upgrade
