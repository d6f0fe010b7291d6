//! The broker under test.

use std::sync::{Arc, Mutex, Weak};

use ferrule_mqtt::Version;
use ferrule_testkit::{Config, Node};

static NODE: Mutex<Weak<Node>> = Mutex::new(Weak::new());

/// One node for all tests that run at a time.
pub(crate) struct Broker {
    /// The version it is spoken to in.
    pub(crate) version: Version,
    /// The node.
    pub(crate) node: Arc<Node>,
}

impl Broker {
    fn new(version: Version) -> Self {
        let mut shared = NODE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let node = shared.upgrade().unwrap_or_else(|| Arc::new(Node::start(&Config::edge())));
        *shared = Arc::downgrade(&node);
        Self { version, node }
    }

    pub(crate) fn v3_1_1() -> Self {
        Self::new(Version::V3_1_1)
    }

    pub(crate) fn v5() -> Self {
        Self::new(Version::V5)
    }
}

/// The only user of a [`closed`] node; its password is [`ferrule_testkit::node::EDGE_PASSWORD`].
pub(crate) const USER: &str = "press";

/// A node that lets in [`USER`] alone.
pub(crate) fn closed() -> Node {
    let user = format!("[[user]]\nname = \"{USER}\"\npassword_file = \"edge.pass\"\n");
    Node::start(&Config::edge().closed().extra(&user))
}
