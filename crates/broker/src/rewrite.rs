//! Topics that clients name, and what is meant: for devices whose topics nobody can change any more, as EMQX does it.
//!
//! # Operation
//! Of the rules for a kind of packet the first whose filter matches the topic decides: if its expression matches too, the topic becomes what
//! the rule says, else it stays. Whether a client may use a topic is asked of what it named itself. The
//! prefix of a shared or exclusive subscription stays, and a filter is matched as the text it is: `a/+` by `a/#`.
//!
//! # Bounds
//! Expressions are matched in time linear in the topic's length (`regex-lite`), of which there is a bound; rules are looked at in
//! turn, and where there are none nothing is.

use crate::features;
use ferrule_mqtt::topic;
use regex_lite::{Captures, Regex};
use std::borrow::Cow;

/// The packets that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// PUBLISH, and wills.
    Publish,
    /// SUBSCRIBE and UNSUBSCRIBE.
    Subscribe,
    /// All of them.
    All,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rewrite {
    action: Action,
    source: Box<str>,
    expression: Regex,
    /// With `$1`, and `${clientid}` and `${username}`.
    destination: Box<str>,
}

impl PartialEq for Rewrite {
    fn eq(&self, other: &Self) -> bool {
        let parts = |r: &Self| (r.action, r.source.clone(), r.destination.clone());
        parts(self) == parts(other) && self.expression.as_str() == other.expression.as_str()
    }
}

impl Eq for Rewrite {}

impl Rewrite {
    /// A rule for what matches `source` and then `expression`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(action: Action, source: &str, expression: &str, destination: &str) -> Result<Self, String> {
        topic::validate_filter(source).map_err(|e| format!("{source:?} is not a topic filter: {e}"))?;
        let expression =
            Regex::new(expression).map_err(|e| format!("{expression:?} is not a regular expression: {e}"))?;
        let most = expression.captures_len() - 1;
        if let Some(number) = references(destination).find(|number| *number > most) {
            return Err(format!("{destination:?} has ${number}, and the expression has {most} groups"));
        }
        Ok(Self { action, source: source.into(), expression, destination: destination.into() })
    }

    /// The topic that is meant; none: as it is.
    fn apply(&self, topic: &str, client_id: &str, username: Option<&str>) -> Option<String> {
        let captures = self.expression.captures(topic)?;
        // Names first: what a topic's text brings in is not looked into again.
        let destination = features::fill(&self.destination, client_id, username)?;
        Some(expand(&destination, &captures))
    }
}

/// Whether a text can have come of a template, whatever its groups stood for.
fn can_become(template: &str, text: &str) -> bool {
    let mut literals = vec![String::new()];
    let mut parts = template.split('$');
    literals[0].push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        if part[..digits].parse::<usize>().is_ok() {
            literals.push(part[digits..].to_owned());
        } else if let Some(literal) = literals.last_mut() {
            literal.push('$');
            literal.push_str(part);
        }
    }
    let [first, middle @ .., last] = &literals[..] else { return literals[0] == text };
    let Some(mut rest) = text.strip_prefix(&**first) else { return false };
    for literal in middle {
        let Some(at) = rest.find(&**literal) else { return false };
        rest = &rest[at + literal.len()..];
    }
    rest.ends_with(&**last)
}

/// The groups that a text names: `$1` and so on, one or more digits.
fn references(text: &str) -> impl Iterator<Item = usize> {
    text.split('$').skip(1).filter_map(|after| {
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        after[..digits].parse().ok()
    })
}

fn expand(text: &str, captures: &Captures<'_>) -> String {
    let mut parts = text.split('$');
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        match part[..digits].parse() {
            Ok(number) => {
                expanded.push_str(captures.get(number).map_or("", |group| group.as_str()));
                expanded.push_str(&part[digits..]);
            }
            Err(_) => {
                expanded.push('$');
                expanded.push_str(part);
            }
        }
    }
    expanded
}

/// All rules, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrites {
    publish: Box<[Rewrite]>,
    subscribe: Box<[Rewrite]>,
}

impl Rewrites {
    /// Rules in the order of their precedence.
    #[must_use]
    pub fn new(rules: &[Rewrite]) -> Self {
        let of =
            |action| rules.iter().filter(move |r| r.action == action || r.action == Action::All).cloned();
        Self { publish: of(Action::Publish).collect(), subscribe: of(Action::Subscribe).collect() }
    }

    /// Whether any is for publishes.
    pub(crate) fn concern_publishes(&self) -> bool {
        !self.publish.is_empty()
    }

    /// The topic that a publish is for; none: the one that it names. It may be no valid topic name.
    pub(crate) fn name(&self, name: &str, client_id: &str, username: Option<&str>) -> Option<String> {
        let rule = self.publish.iter().find(|rule| topic::matches(&rule.source, name))?;
        rule.apply(name, client_id, username)
    }

    /// The filter that a subscription is for.
    pub(crate) fn filter<'a>(
        &self,
        filter: &'a str,
        client_id: &str,
        username: Option<&str>,
    ) -> Cow<'a, str> {
        if self.subscribe.is_empty() {
            return filter.into();
        }
        let plain = topic::plain(filter);
        let rule = self.subscribe.iter().find(|rule| topic::covers(&rule.source, plain));
        match rule.and_then(|rule| rule.apply(plain, client_id, username)) {
            Some(meant) => format!("{}{meant}", &filter[..filter.len() - plain.len()]).into(),
            None => filter.into(),
        }
    }

    /// Whether one of them can have made this filter: what it was asked for by is not known then.
    pub(crate) fn can_have_made(&self, filter: &str, client_id: &str, username: Option<&str>) -> bool {
        let plain = topic::plain(filter);
        let mut destinations =
            self.subscribe.iter().filter_map(|rule| features::fill(&rule.destination, client_id, username));
        destinations.any(|destination| can_become(&destination, plain))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rules(rules: &[(Action, &str, &str, &str)]) -> Rewrites {
        let rules: Vec<_> = rules.iter().map(|(a, s, e, d)| Rewrite::new(*a, s, e, d).unwrap()).collect();
        Rewrites::new(&rules)
    }

    #[test]
    fn the_first_rule_whose_filter_matches_decides() {
        // The example of EMQX's manual.
        let rules = rules(&[
            (Action::All, "y/+/z/#", "^y/(.+)/z/(.+)$", "y/z/$2"),
            (Action::All, "x/#", "^x/y/(.+)$", "z/y/x/$1"),
            (Action::All, "x/y/+", r"^x/y/(\d+)$", "z/y/$1"),
        ]);
        for (named, meant) in [
            ("y/a/z/b", Some("y/z/b")),
            ("y/def", None),
            ("x/1/2", None),
            ("x/y/2", Some("z/y/x/2")),
            ("x/y/z", Some("z/y/x/z")),
        ] {
            assert_eq!(rules.name(named, "c", None).as_deref(), meant, "{named}");
            assert_eq!(rules.filter(named, "c", None), meant.unwrap_or(named), "{named}");
        }
        for (named, meant) in [
            ("$share/g/x/y/z", "$share/g/z/y/x/z"),
            ("$exclusive/x/y/z", "$exclusive/z/y/x/z"),
            ("x/y/+", "z/y/x/+"),
            ("x/#", "x/#"),
            ("#", "#"),
        ] {
            assert_eq!(rules.filter(named, "c", None), meant, "{named}");
        }
    }

    #[test]
    fn kinds_of_packets_and_names() {
        let rules = rules(&[
            (Action::Publish, "up/#", "^up/(.*)$", "from/${clientid}/$1"),
            (Action::Subscribe, "down/#", "^down/(.*)$", "to/${username}/$1"),
        ]);
        assert_eq!(rules.name("up/a", "c", None).as_deref(), Some("from/c/a"));
        assert_eq!(rules.name("up/$2", "c", None).as_deref(), Some("from/c/$2"), "a topic is not a template");
        assert_eq!(rules.name("down/a", "c", None), None);
        assert_eq!(rules.filter("down/+", "c", Some("u")), "to/u/+");
        assert_eq!(rules.filter("up/a", "c", Some("u")), "up/a");
        // A name that would be several levels rewrites nothing.
        assert_eq!(rules.name("up/a", "c/d", None), None);
        assert_eq!(rules.filter("down/a", "c", None), "down/a");
    }

    #[test]
    fn what_a_rule_can_have_made() {
        for (destination, filter, expected) in [
            ("z/$1", "z/a/b", true),
            ("z/$1", "y/z/a", false),
            ("z/$2/x/$1", "z/a/x/b", true),
            ("z/$2/x/$1", "z/a/y/b", false),
            ("$1/end", "a/end", true),
            ("$1/end", "a/end/b", false),
            ("to/${username}/$1", "to/u/#", true),
            ("to/${username}/$1", "to/v/#", false),
            ("fixed", "fixed", true),
            ("fixed", "fixed/a", false),
            ("$SYS/$1", "$SYS/a", true),
            ("a$1a", "a", false),
        ] {
            let rules = rules(&[(Action::Subscribe, "#", "^(.+)/(.+)$", destination)]);
            let shared = format!("$share/g/{filter}");
            for filter in [filter, &shared] {
                assert_eq!(rules.can_have_made(filter, "c", Some("u")), expected, "{destination} {filter}");
            }
        }
        let publishes = rules(&[(Action::Publish, "#", "^(.+)$", "z/$1")]);
        assert!(!publishes.can_have_made("z/a", "c", None));
    }

    #[test]
    fn rules_that_cannot_be_meant() {
        for (source, expression, destination, what) in [
            ("a/#/b", "a", "b", "not a topic filter"),
            ("a", "(", "b", "not a regular expression"),
            ("a", "(a)", "$2", "has 1 groups"),
        ] {
            let told = Rewrite::new(Action::All, source, expression, destination).unwrap_err();
            assert!(told.contains(what), "{told}");
        }
    }
}
