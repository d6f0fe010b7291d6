//! The sessions of a node that is killed.

use std::time::{Duration, Instant};

use ferrule_testkit::Sessions;

use super::site::Site;
use super::{BACK_S_MAX, Found};
use crate::result::Machine;
use crate::run::Options;

/// What takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn of_a_dead_node(options: &Options, _: &Machine) -> Result<Found, String> {
    let size = |full: usize| if options.quick { full / 1_000 } else { full };
    let mut found = connected(size(15_000))?;
    found.extend(offline(size(100_000))?);
    Ok(found)
}

fn connected(count: usize) -> Result<Found, String> {
    let mut site = Site::start(3, None);
    let addrs = site.addrs();
    let sessions = Sessions { prefix: "here".into(), count };
    let before = sessions.connected(addrs[2]);
    let killed = Instant::now();
    site.nodes[2].kill9();
    drop(before);
    let (forgotten, _, clients) = sessions.come_back(&addrs[..2], LIMIT);
    let seconds = killed.elapsed().as_secs_f64();
    drop(clients);
    if forgotten > 0 {
        return Err(format!("{forgotten} of {count} sessions were not there"));
    }
    Ok(vec![(format!("{count} connected clients of a killed node are back"), "s", Some(BACK_S_MAX), seconds)])
}

fn offline(count: usize) -> Result<Found, String> {
    let mut site = Site::start(3, None);
    let addrs = site.addrs();
    let sessions = Sessions { prefix: "away".into(), count };
    let begun = Instant::now();
    sessions.offline(addrs[2]);
    let made = begun.elapsed().as_secs_f64();
    let killed = Instant::now();
    site.nodes[2].kill9();
    let (unmatched, _) = sessions.reach(&addrs[..2], LIMIT);
    let seconds = killed.elapsed().as_secs_f64();
    if unmatched > 0 {
        return Err(format!("{unmatched} of {count} messages matched nobody"));
    }
    let name = |what: &str| format!("{count} absent sessions of a killed node{what}");
    Ok(vec![
        (format!("{count} sessions made, each with a filter, and left"), "s", None, made),
        (name(": a message to each is stored and acknowledged"), "s", Some(BACK_S_MAX), seconds),
    ])
}
