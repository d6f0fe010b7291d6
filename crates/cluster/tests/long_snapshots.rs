//! A member whose routes take long to be sent to: it is offered behind them, and is not taken for silent meanwhile.

use ferrule_cluster::{Action, Config, Member, Message, Node, NodeId, PeerId, State, View};

const MS: u64 = 1_000;
const ME: PeerId = PeerId { node: NodeId(1), incarnation: 1 };
const OTHER: PeerId = PeerId { node: NodeId(2), incarnation: 3 };

/// A live node with a link to one that joins.
fn joined_by() -> Node {
    let mut node = Node::new(Config::default(), ME, 0);
    let member = |id, state| Member { id, state, owns: false };
    let view = View { number: 3, members: vec![member(ME, State::Live), member(OTHER, State::Joining)] };
    node.view(view, 0, 0);
    assert!(node.link_up(OTHER, 0));
    node
}

fn offers(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Send(_, Message::Offer { .. }))).count()
}

#[test]
fn who_joins_is_offered_when_all_has_been_sent_and_is_not_silent_till_then() {
    let mut node = joined_by();
    let actions = node.actions();
    assert!(actions.contains(&Action::SendRoutes(OTHER)), "{actions:?}");
    assert_eq!(offers(&actions), 0);
    // Three times as long as one that joins may be silent.
    for beat in 1..150 {
        let now_us = beat * 200 * MS;
        node.message(OTHER, Message::Heartbeat { number: beat, view: 3 }, now_us);
        node.tick(now_us);
        let actions = node.actions();
        assert_eq!(offers(&actions), 0, "{beat}");
        assert!(!actions.contains(&Action::Remove(OTHER)), "{beat}: {actions:?}");
    }
    node.routes_sent(OTHER);
    assert_eq!(offers(&node.actions()), 1);
    // Of a link that is no more it says nothing.
    node.link_down(OTHER);
    node.routes_sent(OTHER);
    assert!(node.link_up(OTHER, 30_000 * MS));
    let actions = node.actions();
    assert!(actions.contains(&Action::SendRoutes(OTHER)));
    assert_eq!(offers(&actions), 0, "{actions:?}");
}

#[test]
fn who_joins_and_is_silent_is_removed() {
    let mut node = joined_by();
    node.message(OTHER, Message::Heartbeat { number: 1, view: 3 }, 200 * MS);
    let mut now_us = 200 * MS;
    while !node.actions().contains(&Action::Remove(OTHER)) {
        now_us += 200 * MS;
        assert!(now_us < 30_000 * MS, "nobody removes it");
        node.tick(now_us);
    }
}

#[test]
fn who_is_in_when_its_link_breaks_is_offered_at_once() {
    let mut node = joined_by();
    node.routes_sent(OTHER);
    let offer = |actions: Vec<Action>| {
        actions.into_iter().find_map(|action| match action {
            Action::Send(_, Message::Offer { epoch }) => Some(epoch),
            _ => None,
        })
    };
    let epoch = offer(node.actions());
    assert!(epoch.is_some());
    node.message(OTHER, Message::Accept { epoch: epoch.unwrap_or(0) }, 200 * MS);
    assert!(node.actions().iter().any(|action| matches!(action, Action::In(..))));
    node.link_down(OTHER);
    assert!(node.link_up(OTHER, 400 * MS));
    assert!(offer(node.actions()).is_some(), "it knows all that was promised");
}
