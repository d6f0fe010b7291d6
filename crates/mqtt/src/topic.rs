//! Topic names and topic filters [MQTT 5, 4.7 and 4.8.2].
//!
//! Everything here walks levels from left to right without recursion or allocation. Names and filters have at
//! most [`MAX_LEVELS`] levels: an index that keeps a node per level, or walks one per level, is then bounded
//! too (65,535 slashes in one SUBSCRIBE would otherwise be as many nodes).

use crate::reader::contains_any;

/// Most levels that a name or a filter may have. Real topic trees have fewer than 20; EMQX and VerneMQ draw their
/// line at 128 and 10 by default.
pub const MAX_LEVELS: usize = 128;

/// What a shared subscription's filter begins with [MQTT-4.8.2-1].
pub const SHARED_PREFIX: &str = "$share/";

/// What an exclusive subscription's filter begins with: an extension that EMQX made known.
pub const EXCLUSIVE_PREFIX: &str = "$exclusive/";

/// What the topic of a delayed publish begins with: an extension that EMQX made known.
pub const DELAYED_PREFIX: &str = "$delayed/";

/// Why a topic name or a topic filter is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TopicError {
    /// No characters.
    #[error("topic is empty [MQTT-4.7.3-1]")]
    Empty,
    /// More than 65,535 bytes.
    #[error("topic is longer than 65535 bytes [MQTT-4.7.3-3]")]
    TooLong,
    /// The null character.
    #[error("topic contains U+0000 [MQTT-4.7.3-2]")]
    Nul,
    /// `+` or `#` in a topic name.
    #[error("topic name contains a wildcard [MQTT-4.7.0-1]")]
    WildcardInName,
    /// `+` or `#` beside other characters of its level.
    #[error("wildcard does not occupy an entire level [MQTT-4.7.1-1, MQTT-4.7.1-2]")]
    WildcardNotAlone,
    /// `#` before another level.
    #[error("multi-level wildcard is not the last level [MQTT-4.7.1-1]")]
    HashNotLast,
    /// More than [`MAX_LEVELS`].
    #[error("topic has more than 128 levels")]
    TooManyLevels,
    /// `$share/` without a share name, with wildcards in it, or without a filter behind it; `$exclusive/` without
    /// a filter.
    #[error(
        "shared subscription needs a share name without wildcards and a filter [MQTT-4.8.2-1, MQTT-4.8.2-2]"
    )]
    InvalidShare,
}

/// Checks a topic name.
///
/// # Errors
///
/// See [`TopicError`].
///
/// ```
/// use ferrule_mqtt::topic::{TopicError, validate_name};
///
/// assert_eq!(validate_name("plant/7/oven"), Ok(()));
/// assert_eq!(validate_name("plant/+/oven"), Err(TopicError::WildcardInName));
/// ```
pub fn validate_name(name: &str) -> Result<(), TopicError> {
    let bytes = name.as_bytes();
    check_text(bytes)?;
    if contains_any(bytes, [b'+', b'#']) {
        return Err(TopicError::WildcardInName);
    }
    check_levels(bytes)
}

/// Checks a topic filter, with or without `$share/{name}/` or `$exclusive/` before it.
///
/// # Errors
///
/// See [`TopicError`].
///
/// ```
/// use ferrule_mqtt::topic::{TopicError, validate_filter};
///
/// assert_eq!(validate_filter("plant/+/#"), Ok(()));
/// assert_eq!(validate_filter("$share/workers/plant/#"), Ok(()));
/// assert_eq!(validate_filter("plant/#/oven"), Err(TopicError::HashNotLast));
/// assert_eq!(validate_filter("$share/workers"), Err(TopicError::InvalidShare));
/// ```
pub fn validate_filter(filter: &str) -> Result<(), TopicError> {
    check_text(filter.as_bytes())?;
    let plain = if filter.starts_with(SHARED_PREFIX) {
        shared(filter).ok_or(TopicError::InvalidShare)?.1
    } else if filter.starts_with(EXCLUSIVE_PREFIX) {
        exclusive(filter).ok_or(TopicError::InvalidShare)?
    } else {
        filter
    };
    check_levels(plain.as_bytes())?;
    let mut rest = levels(plain);
    while let Some(level) = rest.next() {
        match level {
            "#" if rest.next().is_some() => return Err(TopicError::HashNotLast),
            "#" | "+" => {}
            _ if contains_any(level.as_bytes(), [b'+', b'#']) => return Err(TopicError::WildcardNotAlone),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a topic name matches a plain filter (one without `$share/...`; see [`shared`]). Both are taken to be
/// valid.
///
/// A filter that begins with a wildcard does not match a name that begins with `$` [MQTT-4.7.2-1].
///
/// ```
/// use ferrule_mqtt::topic::matches;
///
/// assert!(matches("sport/tennis/#", "sport/tennis"));
/// assert!(!matches("sport/+", "sport"));
/// assert!(!matches("#", "$SYS/broker/uptime"));
/// ```
pub fn matches(filter: &str, name: &str) -> bool {
    if hides_dollar(filter, name) {
        return false;
    }
    // Byte by byte: in a valid filter a wildcard is a whole level, so a byte of one needs no look around it.
    let (mut filter, mut name) = (filter.as_bytes(), name.as_bytes());
    loop {
        match (filter, name) {
            ([], []) | ([b'#', ..], _) => return true,
            ([b'+', filter_rest @ ..], _) => {
                let level = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
                (filter, name) = (filter_rest, &name[level..]);
            }
            ([wanted, filter_rest @ ..], [found, name_rest @ ..]) if wanted == found => {
                (filter, name) = (filter_rest, name_rest);
            }
            // `#` includes the parent level.
            (b"/#", []) => return true,
            _ => return false,
        }
    }
}

/// Whether every topic name that `narrow` matches is matched by `wide` too. Both are plain, valid filters. For
/// access rules: a client may subscribe to `narrow` if a rule allows it `wide`.
///
/// ```
/// use ferrule_mqtt::topic::covers;
///
/// assert!(covers("plant/#", "plant/+/oven"));
/// assert!(!covers("plant/+", "plant/#"));
/// assert!(!covers("#", "$SYS/#"));
/// ```
pub fn covers(wide: &str, narrow: &str) -> bool {
    if hides_dollar(wide, narrow) {
        return false;
    }
    // Every name has a first level, so `+/#` says the same as `#`, at the beginning and only there.
    if wide == "+/#" {
        return true;
    }
    let mut wides = levels(wide);
    let mut narrows = levels(narrow);
    loop {
        match (wides.next(), narrows.next()) {
            (Some("#"), _) | (None, None) => return true,
            // `narrow` goes deeper than any number of levels.
            (_, Some("#")) => return false,
            (Some("+"), Some(_)) => {}
            // Equal literals; a `+` of `narrow` equals none.
            (Some(wide), Some(narrow)) if wide == narrow => {}
            _ => return false,
        }
    }
}

/// The levels of a name or filter, from the left. An empty level is a level: `/a` has two.
///
/// ```
/// use ferrule_mqtt::topic::levels;
///
/// assert_eq!(levels("/a//b").collect::<Vec<_>>(), ["", "a", "", "b"]);
/// ```
#[inline]
pub const fn levels(topic: &str) -> Levels<'_> {
    Levels { rest: Some(topic) }
}

/// See [`levels`].
#[derive(Debug, Clone)]
pub struct Levels<'a> {
    /// `None` after the last level.
    rest: Option<&'a str>,
}

impl<'a> Levels<'a> {
    /// The levels that have not been taken yet, still joined; `None` after the last one.
    #[inline]
    pub const fn rest(&self) -> Option<&'a str> {
        self.rest
    }
}

impl<'a> Iterator for Levels<'a> {
    type Item = &'a str;

    /// A plain loop: levels are short, and a searching routine costs more to start than it saves.
    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let Some(end) = rest.as_bytes().iter().position(|&byte| byte == b'/') else {
            self.rest = None;
            return Some(rest);
        };
        let (level, tail) = rest.split_at(end);
        self.rest = tail.get(1..);
        Some(level)
    }
}

impl std::iter::FusedIterator for Levels<'_> {}

/// The share name and the plain filter of a shared subscription `$share/{name}/{filter}`. `None` when it is not
/// one, or not a valid one: the prefix alone tells these apart, and [`validate_filter`] refuses the latter.
///
/// ```
/// use ferrule_mqtt::topic::shared;
///
/// assert_eq!(shared("$share/workers/jobs/+"), Some(("workers", "jobs/+")));
/// assert_eq!(shared("$share/workers"), None);
/// assert_eq!(shared("jobs/+"), None);
/// ```
pub fn shared(filter: &str) -> Option<(&str, &str)> {
    let (group, plain) = filter.strip_prefix(SHARED_PREFIX)?.split_once('/')?;
    (!group.is_empty() && !plain.is_empty() && !group.contains(['+', '#'])).then_some((group, plain))
}

/// The plain filter of an exclusive subscription `$exclusive/{filter}`; `None` when it is not one.
pub fn exclusive(filter: &str) -> Option<&str> {
    filter.strip_prefix(EXCLUSIVE_PREFIX).filter(|plain| !plain.is_empty())
}

/// Number and topic of a delayed publish `$delayed/{number}/{topic}`; `None` when it is not one.
///
/// ```
/// use ferrule_mqtt::topic::delayed;
///
/// assert_eq!(delayed("$delayed/15/a/b"), Some((15, "a/b")));
/// assert_eq!(delayed("$delayed/soon/a/b"), None);
/// ```
#[inline]
pub fn delayed(name: &str) -> Option<(u64, &str)> {
    // Asked of every publish: hardly any topic begins so.
    if name.as_bytes().first() != Some(&b'$') { None } else { parse_delayed(name) }
}

#[cold]
fn parse_delayed(name: &str) -> Option<(u64, &str)> {
    let (number, topic) = name.strip_prefix(DELAYED_PREFIX)?.split_once('/')?;
    // Digits alone: `parse` would take a sign, too.
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    number.parse().ok().filter(|_| is_number && !topic.is_empty()).map(|number| (number, topic))
}

/// What a subscription is for: of `$share/{group}/{filter}` and `$exclusive/{filter}` the filter.
pub fn plain(filter: &str) -> &str {
    shared(filter).map(|(_, plain)| plain).or_else(|| exclusive(filter)).unwrap_or(filter)
}

/// Whether a filter has wildcards.
pub fn has_wildcards(filter: &str) -> bool {
    contains_any(filter.as_bytes(), [b'+', b'#'])
}

/// [MQTT-4.7.2-1]: a leading wildcard does not stand for a level that begins with `$`.
#[inline]
fn hides_dollar(filter: &str, name: &str) -> bool {
    name.as_bytes().first() == Some(&b'$') && matches!(filter.as_bytes().first(), Some(b'+' | b'#'))
}

fn check_text(bytes: &[u8]) -> Result<(), TopicError> {
    if bytes.is_empty() {
        Err(TopicError::Empty)
    } else if bytes.len() > crate::MAX_STRING_LENGTH {
        Err(TopicError::TooLong)
    } else if contains_any(bytes, [0]) {
        Err(TopicError::Nul)
    } else {
        Ok(())
    }
}

fn check_levels(bytes: &[u8]) -> Result<(), TopicError> {
    if bytes.iter().filter(|&&byte| byte == b'/').count() < MAX_LEVELS {
        Ok(())
    } else {
        Err(TopicError::TooManyLevels)
    }
}
