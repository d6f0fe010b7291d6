//! `cluster drain|leave|status`: a node that is one of several, asked through its control socket.
//!
//! What takes its time is waited for, and told while it lasts; whoever ends the command ends nothing of what it began.

use super::status::{Table, drained};
use super::{AskArgs, Failure, Flavor, Where, data_dir, failed};
use crate::control::{self, AskError, DrainStatus, MemberStatus, Status};
use crate::drain::{RATE, RATE_MAX};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is done with a node of a cluster.
#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Let no client in any more, and move those who are there to other nodes, a few at a time
    Drain(DrainArgs),
    /// Drain this node, then stop it, so that it is no member any more; or take out another one that is dead
    Leave(LeaveArgs),
    /// Show the members, as this node sees them
    Status(AskArgs),
}

/// Arguments of `cluster drain`.
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Clients a second that are moved off
    #[arg(long, value_name = "N", default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: u32,
    /// Do not wait until no client is left
    #[arg(long)]
    no_wait: bool,
    /// Let clients in again
    #[arg(long, conflicts_with_all = ["rate", "no_wait"])]
    undo: bool,
    #[command(flatten)]
    at: Where,
}

/// Arguments of `cluster leave`.
#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    /// Do not move clients off first: all of them lose their connection at once
    #[arg(long)]
    now: bool,
    /// Clients a second that are moved off first
    #[arg(long, value_name = "N", default_value_t = RATE, conflicts_with = "now", value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    rate: u32,
    /// Another node, which is dead and will not come back: the one whose data folder is named here takes it out
    #[arg(long, value_name = "NAME", conflicts_with_all = ["now", "rate"])]
    node: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// How often it is looked how far it is,
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// and told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// A member that is dead is known to be after some 15 s.
const DEAD: Duration = Duration::from_secs(45);

pub(super) fn run(flavor: &Flavor, command: &ClusterCommand) -> Result<u8, Failure> {
    if flavor.cluster.is_none() {
        return Err(Failure::Text(
            "an edge is never one of several nodes: `cluster` is ferrule-cloud's".into(),
        ));
    }
    let mut out = io::stdout().lock();
    match command {
        ClusterCommand::Drain(args) => drain(flavor, args, &mut out),
        ClusterCommand::Leave(args) => leave(flavor, args, &mut out),
        ClusterCommand::Status(args) => status(flavor, args, &mut out),
    }
}

/// The node that is asked.
struct Asked {
    data_dir: PathBuf,
    program: &'static str,
}

impl Asked {
    fn at(flavor: &Flavor, at: &Where) -> Result<Self, Failure> {
        let data_dir = data_dir(flavor, at.data_dir.as_ref(), at.config.as_ref())?;
        Ok(Self { data_dir, program: flavor.name })
    }

    fn ask(&self, request: &Value) -> Result<Value, Failure> {
        self.try_ask(request).map_err(|error| Failure::Text(error.to_string()))
    }

    fn try_ask(&self, request: &Value) -> Result<Value, AskError> {
        control::ask(&self.data_dir, self.program, request)
    }

    /// How it goes with a drain; none: there is none.
    fn drain(&self) -> Result<Option<DrainStatus>, Failure> {
        let status = self.ask(&json!({ "do": "status" }))?;
        match status.get("drain") {
            None | Some(Value::Null) => Ok(None),
            Some(drain) => serde_json::from_value(drain.clone())
                .map(Some)
                .map_err(|error| Failure::Text(format!("its status is of an unknown form: {error}"))),
        }
    }

    /// Drains it, and waits until no client is left; and with `wills` until none waits for news of its client.
    fn drain_and_wait(&self, rate: u32, wills: bool, out: &mut impl Write) -> Result<(), Failure> {
        self.ask(&json!({ "do": "cluster.drain", "rate": rate }))?;
        let mut told: Option<(Instant, String)> = None;
        loop {
            let drain = self.drain()?.filter(|drain| drain.draining);
            let Some(drain) = drain else {
                return Err(Failure::Text("the drain was undone meanwhile: clients are let in".into()));
            };
            let text = drained(&drain);
            let is_over = drain.clients == 0 && (!wills || drain.wills == 0);
            let is_due = told.as_ref().is_none_or(|(at, said)| at.elapsed() >= TELL_EVERY && *said != text);
            if is_due || is_over {
                writeln!(out, "{text}").and_then(|()| out.flush()).map_err(failed)?;
                told = Some((Instant::now(), text));
            }
            if is_over {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

fn drain(flavor: &Flavor, args: &DrainArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let node = Asked::at(flavor, &args.at)?;
    if args.undo {
        node.ask(&json!({ "do": "cluster.undo" }))?;
        writeln!(out, "clients are let in again").map_err(failed)?;
    } else if args.no_wait {
        node.ask(&json!({ "do": "cluster.drain", "rate": args.rate }))?;
        writeln!(out, "clients are moved off, {} a second; `status` shows how many are left", args.rate)
            .map_err(failed)?;
    } else {
        node.drain_and_wait(args.rate, false, out)?;
        writeln!(out, "stop the node now, or let clients in again: `{} cluster drain --undo`", flavor.name)
            .map_err(failed)?;
    }
    Ok(0)
}

fn leave(flavor: &Flavor, args: &LeaveArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let node = Asked::at(flavor, &args.at)?;
    if let Some(name) = &args.node {
        return remove(&node, name, out);
    }
    let name = node.ask(&json!({ "do": "status" }))?["id"].as_str().unwrap_or_default().to_owned();
    if !args.now {
        node.drain_and_wait(args.rate, true, out)?;
    }
    node.ask(&json!({ "do": "cluster.leave" }))?;
    writeln!(out, "{name} has left the cluster and stopped: a start has it join again").map_err(failed)?;
    Ok(0)
}

fn remove(node: &Asked, name: &str, out: &mut impl Write) -> Result<u8, Failure> {
    let began = Instant::now();
    let mut is_told = false;
    while node.ask(&json!({ "do": "cluster.remove", "node": name }))?["removed"] != true {
        if began.elapsed() > DEAD {
            let text = format!(
                "{name:?} lives: the database sees it again and again. `cluster leave` there has it leave"
            );
            return Err(Failure::Text(text));
        }
        if !std::mem::replace(&mut is_told, true) {
            writeln!(out, "no member is live, so it takes some 15 s until {name} is known to be dead")
                .and_then(|()| out.flush())
                .map_err(failed)?;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    writeln!(out, "{name} is no member any more; if it comes back it joins anew").map_err(failed)?;
    Ok(0)
}

fn status(flavor: &Flavor, args: &AskArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let answer = args.ask(flavor, "status")?;
    let form =
        |error| Failure::Text(format!("its status is of an unknown form ({error}); `--json` shows it"));
    let status: Status = serde_json::from_value(answer.clone()).map_err(form)?;
    if status.cluster.is_none() {
        return Err(Failure::Text("this node is in no cluster: its configuration has no [cluster]".into()));
    }
    if args.json {
        let mut shown = answer["cluster"].clone();
        for count in ["connections", "sessions", "subscriptions", "drain"] {
            if let Some(value) = answer.get(count) {
                shown[count] = value.clone();
            }
        }
        shown["rules_kept"] = rules_kept(&status).into();
        writeln!(out, "{shown:#}").map_err(failed)?;
    } else {
        write!(out, "{}", members(&status)).map_err(failed)?;
    }
    Ok(0)
}

/// How many rules that remember something run there.
fn rules_kept(status: &Status) -> u64 {
    status.counters.get("rules_kept").and_then(Value::as_u64).unwrap_or(0)
}

/// The members in a table; of the others no more is known than links and the database say.
fn members(status: &Status) -> String {
    let mut out = String::new();
    let Some(cluster) = &status.cluster else { return out };
    let mut table = Table::new([
        "member",
        "state",
        "number",
        "link",
        "acknowledges",
        "clients",
        "sessions",
        "routes",
        "rules",
        "addresses",
    ]);
    for member in &cluster.members {
        let MemberStatus { name, node, state, addresses, linked, trouble, .. } = member;
        let is_this = member.node == cluster.node;
        let link = match (is_this, linked) {
            (true, _) => "this node",
            (false, true) => "up",
            (false, false) => "none",
        };
        let own = |value: String| if is_this { value } else { "-".to_owned() };
        let is_draining = is_this && status.drain.as_ref().is_some_and(|drain| drain.draining);
        table.row(
            vec![
                name.clone(),
                if is_draining { format!("{state}, draining") } else { state.clone() },
                node.to_string(),
                link.to_owned(),
                own(if cluster.acknowledges { "yes" } else { "no" }.to_owned()),
                own(status.connections.to_string()),
                own(status.sessions.to_string()),
                own(status.subscriptions.to_string()),
                own(rules_kept(status).to_string()),
                addresses.join(" "),
            ],
            trouble.clone(),
        );
    }
    // Writing to a String cannot fail.
    let _ = table.write(&mut out);
    let mut out = out.trim_start().to_owned();
    if let Some(drain) = &status.drain {
        out += &format!("\n{}\n", drained(drain));
    }
    if let Some(trouble) = &cluster.trouble {
        out += &format!("\n{trouble}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ClusterStatus;

    #[test]
    fn members_in_a_table() {
        let member = |node, state: &str, linked, trouble: Option<&str>| MemberStatus {
            name: format!("cloud-{node}"),
            node,
            state: state.into(),
            addresses: vec![format!("10.0.0.{node}:7883")],
            linked,
            trouble: trouble.map(Into::into),
            ..MemberStatus::default()
        };
        let status = Status {
            connections: 1_200,
            sessions: 1_250,
            subscriptions: 3_400,
            counters: [("rules_kept".to_owned(), 4.into())].into_iter().collect(),
            drain: Some(DrainStatus { draining: true, rate: 300, clients: 1_200, moved: 60, wills: 3 }),
            cluster: Some(ClusterStatus {
                node: 1,
                acknowledges: true,
                members: vec![
                    member(1, "live", true, None),
                    member(2, "live", true, None),
                    member(3, "joining", false, Some("10.0.0.3:7883: cannot connect: connection refused")),
                ],
                ..ClusterStatus::default()
            }),
            ..Status::default()
        };
        let expected = "\
member   state           number       link  acknowledges  clients  sessions  routes  rules      addresses
cloud-1  live, draining       1  this node           yes     1200      1250    3400      4  10.0.0.1:7883
cloud-2  live                 2         up             -        -         -       -      -  10.0.0.2:7883
cloud-3  joining              3       none             -        -         -       -      -  10.0.0.3:7883
  10.0.0.3:7883: cannot connect: connection refused

draining: 1200 clients are left, 60 have been moved off, 300 a second; 3 wills wait for news of their clients
";
        assert_eq!(members(&status), expected);
    }
}
