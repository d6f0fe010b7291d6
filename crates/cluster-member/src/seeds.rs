//! Addresses at which nodes that belong to this one may be.
//!
//! # Constraints
//! Nodes find each other in the store that they share. What the store cannot tell is that it is not the same one: a node with another database, schema, or token than the
//! others serves clients by itself, and everything looks fine but what is missing. So a node that has been told where others may be asks them,
//! and does not start if one says no. That nobody answers proves nothing: all may start at once, or this one be the first.
//!
//! # Operation
//! 1. Before the node joins, if it is bound to every address and nothing is said of how it is reached: by the address from which it would reach a seed
//!    ([`route`]).
//! 2. When its links accept, all seeds are asked at once. The first answers decide whether it starts.
//! 3. A seed that nobody has answered at is asked again, once in [`AGAIN`], until each has been answered at; what is wrong is shown in the node's status and logged
//!    once. Who starts behind this one asks it, so of two that do not fit the second does not start; if they start at once, both do not.

use crate::JoinError;
use ferrule_cluster_link::{Seeker, Site, Sought};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Between rounds: nobody waits for them.
const AGAIN: Duration = Duration::from_secs(5);
/// Between look-ups of seeds that have no address yet, as a service has none before its first pod.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A name server may take so long.
const LOOK_UP: Duration = Duration::from_secs(2);

/// Asks the seeds; see the module's header.
pub(crate) struct Asking<S> {
    seeker: Seeker<S>,
    seeds: Vec<String>,
    trouble: watch::Sender<Option<String>>,
}

/// To be run, and what is wrong with a seed.
pub(crate) fn asking<S: Site>(
    seeker: Seeker<S>,
    seeds: Vec<String>,
) -> (Asking<S>, watch::Receiver<Option<String>>) {
    let (trouble, shown) = watch::channel(None);
    (Asking { seeker, seeds, trouble }, shown)
}

impl<S: Site> Asking<S> {
    /// Until all are known to be ours. `first`: told the first round's answer; Err: there are strangers.
    pub(crate) async fn run(mut self, first: impl FnOnce(Result<(), String>)) {
        let mut answer = self.round().await;
        match answer {
            Some(Sought::Strangers(why)) => return first(Err(why)),
            _ => first(Ok(())),
        }
        loop {
            let trouble = match answer {
                None => return,
                Some(Sought::Ours) => None,
                Some(Sought::Nobody(why)) => Some(format!("nobody answers at a seed: {why}")),
                Some(Sought::Strangers(why)) => {
                    Some(format!("a node that `seeds` in [cluster] names does not belong to this one: {why}"))
                }
            };
            self.trouble.send_if_modified(|known| {
                let is_new = *known != trouble;
                if let Some(text) = trouble.as_ref().filter(|_| is_new) {
                    tracing::warn!("{text}");
                }
                known.clone_from(&trouble);
                is_new
            });
            if trouble.is_none() {
                return;
            }
            sleep(AGAIN).await;
            answer = self.round().await;
        }
    }

    /// Asks those who have not answered. What is worst of it; none: the links were stopped.
    async fn round(&mut self) -> Option<Sought> {
        let asked = self.seeds.drain(..).map(|seed| {
            let seeker = self.seeker.clone();
            async move { seeker.ask(&seed).await.map(|sought| (seed, sought)) }
        });
        let mut asked: JoinSet<_> = asked.collect();
        let mut worst = Sought::Ours;
        while let Some(answer) = asked.join_next().await {
            let (seed, sought) = answer.ok().flatten()?;
            if sought != Sought::Ours {
                self.seeds.push(seed);
            }
            worst = match (worst, sought) {
                (Sought::Strangers(why), _) | (_, Sought::Strangers(why)) => Sought::Strangers(why),
                (Sought::Nobody(why), _) | (_, Sought::Nobody(why)) => Sought::Nobody(why),
                (Sought::Ours, Sought::Ours) => Sought::Ours,
            };
        }
        Some(worst)
    }
}

/// The address from which this node reaches a seed, with the port of `bound`. As long as no seed has an address it looks again, up to `patience`.
///
/// # Errors
/// None has one.
pub(crate) async fn route(
    seeds: &[String],
    bound: SocketAddr,
    patience: Duration,
) -> Result<SocketAddr, JoinError> {
    let started = Instant::now();
    let mut why = "there are no `seeds`".to_owned();
    loop {
        let mut found = None;
        for seed in seeds {
            match timeout(LOOK_UP, tokio::net::lookup_host(seed)).await {
                Ok(Ok(addresses)) => {
                    let ways = addresses.filter_map(|to| way(bound.ip(), to));
                    found = outward(found.into_iter().chain(ways));
                    why = format!("there is no way to {seed}");
                }
                Ok(Err(error)) => why = format!("{seed} has no address: {error}"),
                Err(_) => why = format!("no answer to the look-up of {seed} within {LOOK_UP:?}"),
            }
        }
        if let Some(ip) = found {
            return Ok(SocketAddr::new(ip, bound.port()));
        }
        if seeds.is_empty() || started.elapsed() >= patience {
            return Err(JoinError::Route(why));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The first by which others get here: one's own name often stands for the loopback. If all are of that, the first.
fn outward(ways: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
    ways.reduce(|first, next| if first.is_loopback() && !next.is_loopback() { next } else { first })
}

/// By the system's routes: nothing is sent.
fn way(bound: IpAddr, to: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((bound, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_way_to_a_seed_is_the_way_back() {
        let any: SocketAddr = "0.0.0.0:7".parse().unwrap();
        let seeds = |seeds: &[&str]| seeds.iter().map(|&seed| seed.to_owned()).collect::<Vec<_>>();
        let found = route(&seeds(&["no.such.name.invalid:1", "127.0.0.5:9"]), any, Duration::ZERO).await;
        assert_eq!(found.unwrap(), "127.0.0.1:7".parse().unwrap());
        let found = route(&seeds(&["no.such.name.invalid:1"]), any, Duration::ZERO).await.unwrap_err();
        assert!(found.to_string().contains("no.such.name.invalid:1 has no address"), "{found}");
        assert!(found.to_string().contains("set `advertise` in [cluster]"), "{found}");
        assert!(route(&[], any, Duration::MAX).await.is_err());
    }

    #[test]
    fn the_loopback_is_the_last_choice() {
        let of = |texts: &[&str]| outward(texts.iter().map(|text| text.parse().unwrap()));
        for (ways, best) in [
            (&["127.0.0.1", "10.0.0.1", "10.0.0.2"][..], "10.0.0.1"),
            (&["10.0.0.1", "127.0.0.1"], "10.0.0.1"),
            (&["127.0.0.1", "127.0.0.2"], "127.0.0.1"),
        ] {
            assert_eq!(of(ways), Some(best.parse().unwrap()));
        }
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_way_is_of_the_family_that_is_bound() {
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(way(any, "127.0.0.9:1".parse().unwrap()), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(way(any, "[::1]:1".parse().unwrap()), None);
    }
}
