//! The task that owns the decisions.

use crate::seeds::{self, Asking, route};
use crate::site::{Event, Indices, Office, ToPeer};
use crate::view::{Answer, Question};
use crate::{JoinError, LEAVE, RemoveError, Seen, Setup, Status};
use ferrule_clock::boot_us;
use ferrule_cluster::{Config, Deed, Gate, Order, PeerId, Site, Standing, Word};
use ferrule_cluster_link::{Links, Sender, Tls};
use ferrule_net::{Lane, Letter, Post};
use ferrule_store_postgres::{Known, Members, MembersError, Reach};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// What the rest of the program asks.
#[derive(Debug)]
pub(crate) enum Asked {
    Status(oneshot::Sender<Status>),
    Remove(String, Removed),
    Tls(Tls),
    Leave,
}

/// Who is told whether a member was removed.
type Removed = oneshot::Sender<Result<(), RemoveError>>;

pub(crate) struct Driver {
    site: Site,
    posts: Vec<Post>,
    gate: Arc<Gate>,
    /// As it was set last.
    standing: Standing,
    words: mpsc::UnboundedReceiver<Word>,
    links: Links<Office>,
    senders: HashMap<PeerId, Sender>,
    indices: Indices,
    events: mpsc::UnboundedReceiver<Event>,
    questions: mpsc::UnboundedSender<Question>,
    answers: mpsc::UnboundedReceiver<(Question, Answer)>,
    /// Under way.
    asking: Vec<Question>,
    /// Who waits for the answer to a [`Question::RemoveDead`], with the member's name.
    removing: Vec<(PeerId, String, Removed)>,
    known: Known,
    joins: u64,
    trouble: Option<String>,
    /// What is wrong with one.
    seeds: watch::Receiver<Option<String>>,
    /// The next call of the decisions' timers.
    due_us: u64,
}

/// How long the database may take for an answer: two leases, since a member that died is to be removed meanwhile.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a start waits for a database that does not answer.
const JOIN: Duration = Duration::from_secs(30);

impl Driver {
    /// Joins.
    pub(crate) async fn join(setup: Setup) -> Result<(Self, Asking<Office>), JoinError> {
        let Setup { node, cluster, listener, mut advertise, seeds, trust, store, posts, gate, words } = setup;
        let shards = u8::try_from(posts.len()).map_err(|_| JoinError::Shards)?;
        let mut members = Members::new(&store, &Config::default(), ANSWER)?;
        let started = Instant::now();
        if advertise.is_empty() {
            let bound = listener.local_addr()?;
            let address = if bound.ip().is_unspecified() { route(&seeds, bound, JOIN).await? } else { bound };
            tracing::info!("the other nodes reach this one at {address}");
            advertise.push(address.to_string());
        }
        let reach = Reach { shards, addresses: advertise };
        let (me, known) = loop {
            match members.join(&reach, boot_us()).await {
                Ok(joined) => break joined,
                Err(MembersError::Retry(why)) if started.elapsed() < JOIN => {
                    tracing::warn!("{why}; tried again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        tracing::info!(
            node,
            incarnation = me.incarnation,
            members = known.view.members.len(),
            "joins the cluster {cluster:?}"
        );
        let (told, events) = mpsc::unbounded_channel();
        let indices = Indices::default();
        let office = Arc::new(Office::new(posts.clone(), Arc::clone(&indices), told));
        let config = ferrule_cluster_link::Config::new(me, &node, shards, &cluster, trust);
        let config = ferrule_cluster_link::Config { store: known.store.clone(), ..config };
        let links = Links::start(config, listener, office)?;
        let (asking, seeds) = seeds::asking(links.seeker(), seeds);
        let (questions, asks) = mpsc::unbounded_channel();
        let (answer, answers) = mpsc::unbounded_channel();
        tokio::spawn(crate::view::run(members, reach, asks, answer));
        let now_us = boot_us();
        let mut driver = Self {
            site: Site::new(Config::default(), me, shards.into(), now_us),
            posts,
            gate,
            standing: Standing::NONE,
            words,
            links,
            senders: HashMap::new(),
            indices,
            events,
            questions,
            answers,
            asking: Vec::new(),
            removing: Vec::new(),
            known: Known::default(),
            joins: 1,
            trouble: None,
            seeds,
            due_us: now_us,
        };
        driver.learn(known, now_us);
        driver.act();
        Ok((driver, asking))
    }

    /// Until it is told to leave; whether it has.
    pub(crate) async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Asked>) -> bool {
        loop {
            let wait = Duration::from_micros(self.due_us.saturating_sub(boot_us()));
            tokio::select! {
                // What was said and heard first: it renews what a timer would find run out.
                biased;
                Some(word) = self.words.recv() => self.site.said(word, boot_us()),
                Some(event) = self.events.recv() => self.link(event),
                Some((question, answer)) = self.answers.recv() => self.answered(question, answer),
                ask = asked.recv() => match ask {
                    Some(Asked::Status(reply)) => {
                        // Who asked may not wait any more.
                        let _ = reply.send(self.status());
                    }
                    Some(Asked::Remove(name, reply)) => self.remove(name, reply),
                    Some(Asked::Tls(tls)) => self.links.set_tls(tls),
                    Some(Asked::Leave) | None => break,
                },
                () = tokio::time::sleep(wait) => {}
            }
            self.act();
        }
        self.leave().await
    }

    /// Somebody says that a member is dead.
    fn remove(&mut self, name: String, reply: Removed) {
        let members = &self.known.view.members;
        let is_it = |id: PeerId| {
            let known = self.known.names.get(&id);
            known == Some(&name) || id.node.0.to_string() == name
        };
        let peer = members.iter().map(|member| member.id).find(|id| is_it(*id));
        let refused = match peer {
            None => {
                let members = members.iter().map(|member| self.name_of(member.id)).collect();
                Some(RemoveError::Unknown { name: name.clone(), members })
            }
            Some(peer) if peer == self.site.me() => Some(RemoveError::Itself(name.clone())),
            Some(peer) if self.senders.contains_key(&peer) => Some(RemoveError::Lives(name.clone())),
            Some(_) => None,
        };
        match (refused, peer) {
            (None, Some(peer)) => {
                self.removing.push((peer, name, reply));
                self.ask(Question::RemoveDead { me: self.site.me(), peer });
            }
            (refused, _) => {
                // Who asked may not wait any more.
                let _ = refused.map(|refused| reply.send(Err(refused)));
            }
        }
    }

    fn name_of(&self, id: PeerId) -> String {
        self.known.names.get(&id).cloned().unwrap_or_else(|| id.node.0.to_string())
    }

    /// The database has answered about a member that is said to be dead.
    fn removed(&mut self, question: Question, answer: &Answer) {
        let Question::RemoveDead { peer, .. } = question else { return };
        for (_, name, reply) in self.removing.extract_if(.., |(of, ..)| *of == peer) {
            let said = match answer {
                Answer::View { known, .. } if known.view.members.iter().any(|member| member.id == peer) => {
                    Err(RemoveError::Seen)
                }
                Answer::Trouble(error) => Err(error.clone().into()),
                _ => {
                    tracing::warn!(name, "was removed from the cluster: an operator says that it is dead");
                    Ok(())
                }
            };
            let _ = reply.send(said);
        }
    }

    /// Sets the gate, then does what is to be done.
    fn act(&mut self) {
        self.due_us = self.site.tick(boot_us());
        let deeds = self.site.deeds();
        let standing = self.site.standing();
        let before = std::mem::replace(&mut self.standing, standing);
        self.gate.set(standing);
        for deed in deeds {
            self.deed(deed);
        }
        // Who waits for it would otherwise find out by the way.
        if standing.since_us != before.since_us {
            self.posts.iter().for_each(|post| post.put(Letter::Standing));
        }
    }

    fn deed(&mut self, deed: Deed) {
        match deed {
            Deed::Tell(order, peer) => {
                let sender = peer.and_then(|peer| self.senders.get(&peer));
                for post in &self.posts {
                    let is_link = matches!(order, Order::Linked(..));
                    let lane =
                        sender.filter(|_| is_link).cloned().map(|to| Box::new(ToPeer(to)) as Box<dyn Lane>);
                    post.put(Letter::Order(order, lane));
                }
                match order {
                    Order::Live(live) => tracing::info!(live, "this node of the cluster"),
                    Order::Wait(..) => tracing::debug!(?peer, "in"),
                    Order::WaitNot(_) => tracing::debug!(?peer, "out"),
                    _ => {}
                }
            }
            Deed::Send(peer, message) => {
                if let Some(sender) = self.senders.get(&peer) {
                    sender.message(message);
                }
            }
            Deed::Connect(peer) => {
                if let Some(reach) = self.known.reach.get(&peer) {
                    self.links.connect(peer, &reach.addresses);
                }
            }
            Deed::Disconnect(peer) => {
                tracing::info!(?peer, "is no member of the cluster any more");
                self.links.forget(peer);
            }
            Deed::Read => self.ask(Question::Read(self.site.me())),
            Deed::GoLive(view) => self.ask(Question::GoLive { me: self.site.me(), view }),
            Deed::Remove(peer) => {
                tracing::warn!(?peer, "has been silent, and is to be removed from the cluster");
                self.ask(Question::Remove { me: self.site.me(), peer });
            }
            Deed::Rejoin => {
                tracing::warn!("this node was removed from the cluster, and joins again");
                self.ask(Question::Rejoin);
            }
        }
    }

    /// One of a kind at a time: what matters is asked again.
    fn ask(&mut self, question: Question) {
        let is_asked = |other: &Question| std::mem::discriminant(other) == std::mem::discriminant(&question);
        let same = match question {
            Question::Remove { .. } | Question::RemoveDead { .. } => self.asking.contains(&question),
            _ => self.asking.iter().any(is_asked),
        };
        if !same {
            self.asking.push(question);
            // The task ends only with this one.
            let _ = self.questions.send(question);
        }
    }

    fn answered(&mut self, question: Question, answer: Answer) {
        self.asking.retain(|asked| *asked != question);
        self.removed(question, &answer);
        match answer {
            Answer::View { known, asked_us } => {
                // One of a former life says nothing of this one.
                let me = self.site.me();
                let ours = match question {
                    Question::Read(of) => of == me,
                    Question::GoLive { me: of, .. }
                    | Question::Remove { me: of, .. }
                    | Question::RemoveDead { me: of, .. } => of == me,
                    Question::Rejoin | Question::Leave(_) => false,
                };
                self.told_well();
                if ours {
                    self.learn(known, asked_us);
                }
            }
            Answer::Joined { me, known } => {
                self.told_well();
                self.joins += 1;
                self.senders.clear();
                self.links.rejoin(me);
                let now_us = boot_us();
                self.site.rejoin(me, now_us);
                self.learn(known, now_us);
            }
            Answer::Left => {}
            Answer::Trouble(error) => {
                let text = error.to_string();
                if self.trouble.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
                self.trouble = Some(text);
                if question == Question::Rejoin {
                    self.ask(Question::Rejoin);
                }
            }
        }
    }

    fn told_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the members of the cluster can be read again");
        }
    }

    fn learn(&mut self, known: Known, asked_us: u64) {
        if known.view.number >= self.known.view.number {
            self.known = known.clone();
        }
        self.site.view(known.view, asked_us, boot_us());
    }

    fn link(&mut self, event: Event) {
        let now_us = boot_us();
        match event {
            Event::Up { peer, shards, version, to, wanted } => {
                self.senders.insert(peer, to);
                let up = self.site.link_up(peer, (shards, version), now_us);
                tracing::debug!(?peer, shards, version, up, "link");
                if up {
                    let first = self.site.index(peer, 0).unwrap_or_default();
                    let shards = ferrule_cluster::Shards { first, count: shards };
                    self.indices.write().unwrap_or_else(PoisonError::into_inner).insert(peer, shards);
                } else {
                    // Of who was removed; or this process has seen so many lives of nodes that it has no indices left.
                    tracing::warn!(?peer, "a link is of no use: one of the two is no member");
                    self.senders.remove(&peer);
                }
                // Behind the orders.
                self.act();
                let _ = wanted.send(up);
            }
            Event::Down { peer, done } => {
                self.senders.remove(&peer);
                self.indices.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
                self.site.link_down(peer);
                self.act();
                let _ = done.send(());
            }
            Event::Message(peer, message) => self.site.message(peer, message, now_us),
        }
    }

    fn status(&self) -> Status {
        let me = self.site.me();
        let now_us = boot_us();
        let counters = self.links.counters();
        let seen = |member: &ferrule_cluster::Member| Seen {
            id: member.id,
            name: self.name_of(member.id),
            state: member.state,
            addresses: self
                .known
                .reach
                .get(&member.id)
                .map_or_else(Vec::new, |reach| reach.addresses.clone()),
            linked: member.id == me || self.senders.contains_key(&member.id),
            trouble: self.links.trouble(member.id).filter(|_| !self.senders.contains_key(&member.id)),
        };
        Status {
            me,
            view: self.known.view.number,
            members: self.known.view.members.iter().map(seen).collect(),
            live: self.site.is_live(),
            acknowledges: self.standing.allows(now_us, now_us),
            joins: self.joins,
            links_up: counters.up,
            links_down: counters.down,
            trouble: self.trouble.clone().or_else(|| self.seeds.borrow().clone()),
        }
    }

    /// Out of the view, so that nobody waits for this node; whether the database has taken it.
    async fn leave(mut self) -> bool {
        self.gate.set(Standing::NONE);
        let question = Question::Leave(self.site.me());
        let _ = self.questions.send(question);
        let answers = &mut self.answers;
        let left = tokio::time::timeout(LEAVE, async {
            while let Some((of, answer)) = answers.recv().await {
                if of == question {
                    return matches!(answer, Answer::Left);
                }
            }
            false
        });
        let left = left.await.unwrap_or(false);
        if !left {
            tracing::warn!("the database did not take this node's leave: the others find out by its silence");
        }
        // Nobody asks any more for what links deliver.
        drop(self.events);
        self.links.stop().await;
        left
    }
}
