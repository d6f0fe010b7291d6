//! The view's task: what the database is asked waits here.

use ferrule_cluster::PeerId;
use ferrule_store_postgres::{Known, Members, MembersError, Reach};
use std::time::Duration;
use tokio::sync::mpsc;

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Read(PeerId),
    GoLive {
        me: PeerId,
        view: u64,
    },
    Remove {
        me: PeerId,
        peer: PeerId,
    },
    /// The same, since somebody says that it is dead.
    RemoveDead {
        me: PeerId,
        peer: PeerId,
    },
    Rejoin,
    Leave(PeerId),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The view, and when it was asked for, by the clock that leases go by.
    View { known: Known, asked_us: u64 },
    /// Who this node is now.
    Joined { me: PeerId, known: Known },
    /// It has left, or could not.
    Left,
    /// Nothing: it is asked again by whoever wants to know.
    Trouble(MembersError),
}

/// Between two attempts to join anew: a member that was removed serves nobody who wants an acknowledgement.
const REJOIN_PAUSE: Duration = Duration::from_millis(200);

/// Asks, one after the other, until nobody asks any more.
pub(crate) async fn run(
    mut members: Members,
    reach: Reach,
    mut questions: mpsc::UnboundedReceiver<Question>,
    answers: mpsc::UnboundedSender<(Question, Answer)>,
) {
    while let Some(question) = questions.recv().await {
        let asked_us = ferrule_clock::boot_us();
        let view = |known| Answer::View { known, asked_us };
        let answer = match question {
            Question::Read(_) => members.read(asked_us).await.map(view),
            Question::GoLive { me, view: number } => members.go_live(me, number, asked_us).await.map(view),
            Question::Remove { me, peer } => members.remove(me, peer, asked_us).await.map(view),
            Question::RemoveDead { me, peer } => members.remove_dead(me, peer, asked_us).await.map(view),
            Question::Rejoin => {
                members.join(&reach, asked_us).await.map(|(me, known)| Answer::Joined { me, known })
            }
            Question::Leave(me) => members.leave(me, asked_us).await.map(|_| Answer::Left),
        };
        let answer = answer.unwrap_or_else(Answer::Trouble);
        let pause = question == Question::Rejoin && matches!(answer, Answer::Trouble(_));
        if answers.send((question, answer)).is_err() {
            return;
        }
        if pause {
            tokio::time::sleep(REJOIN_PAUSE).await;
        }
    }
}
