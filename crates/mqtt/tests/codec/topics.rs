//! Topic names and filters: the standard's examples, edges, and `covers` against brute force.

use crate::cases;
use ferrule_mqtt::topic::*;
use proptest::prelude::*;

#[test]
fn names() {
    for name in [
        "a",
        "/",
        "//",
        "/a",
        "a/",
        " ",
        "sport/tennis/player1",
        "$SYS/x",
        "é/\u{1F600}",
        "\u{FEFF}",
        "$share/a",
    ] {
        assert_eq!(validate_name(name), Ok(()), "{name}");
    }
    for (name, error) in [
        ("", TopicError::Empty),
        ("a/+", TopicError::WildcardInName),
        ("a#", TopicError::WildcardInName),
        ("a\0b", TopicError::Nul),
    ] {
        assert_eq!(validate_name(name), Err(error), "{name}");
    }
    assert_eq!(validate_name(&"a".repeat(65_535)), Ok(()));
    assert_eq!(validate_name(&"a".repeat(65_536)), Err(TopicError::TooLong));
    assert_eq!(validate_name(&"/".repeat(MAX_LEVELS - 1)), Ok(()));
    assert_eq!(validate_name(&"/".repeat(MAX_LEVELS)), Err(TopicError::TooManyLevels));
}

#[test]
fn filters() {
    for filter in [
        "#",
        "+",
        "/",
        "+/#",
        "/#",
        "sport/tennis/#",
        "+/tennis/#",
        "sport/+/player1",
        "+/+",
        "a//b",
        "$SYS/#",
        "$share/g/#",
        "$share/g//",
        "$share/g/a/b",
        "$share",
        "$shared/+",
        "$exclusive/a/+",
        "$exclusive",
    ] {
        assert_eq!(validate_filter(filter), Ok(()), "{filter}");
    }
    for (filter, error) in [
        ("", TopicError::Empty),
        ("\0", TopicError::Nul),
        ("sport/tennis#", TopicError::WildcardNotAlone),
        ("sport/tennis/#/ranking", TopicError::HashNotLast),
        ("#/", TopicError::HashNotLast),
        ("##", TopicError::WildcardNotAlone),
        ("sport+", TopicError::WildcardNotAlone),
        ("+a/b", TopicError::WildcardNotAlone),
        ("a/b+/c", TopicError::WildcardNotAlone),
        ("$share/", TopicError::InvalidShare),
        ("$share/g", TopicError::InvalidShare),
        ("$share/g/", TopicError::InvalidShare),
        ("$share//a", TopicError::InvalidShare),
        ("$share/+/a", TopicError::InvalidShare),
        ("$share/g#/a", TopicError::InvalidShare),
        ("$share/g/a/#/b", TopicError::HashNotLast),
        ("$exclusive/", TopicError::InvalidShare),
        ("$exclusive/a+", TopicError::WildcardNotAlone),
    ] {
        assert_eq!(validate_filter(filter), Err(error), "{filter}");
    }
    assert_eq!(validate_filter(&"+/".repeat(MAX_LEVELS)), Err(TopicError::TooManyLevels));
    assert_eq!(validate_filter(&format!("{}#", "+/".repeat(MAX_LEVELS - 1))), Ok(()));
}

#[test]
fn prefixes() {
    assert_eq!(shared("$share/g/a/b"), Some(("g", "a/b")));
    assert_eq!(shared("$share/g//a"), Some(("g", "/a")));
    assert_eq!(shared("$share/g/$SYS/#"), Some(("g", "$SYS/#")));
    assert_eq!(shared("$shared/g/a"), None);
    assert_eq!(exclusive("$exclusive/a/b"), Some("a/b"));
    assert_eq!(exclusive("$exclusive//"), Some("/"));
    assert_eq!(exclusive("exclusive/a"), None);
    assert_eq!(levels("/a//").collect::<Vec<_>>(), ["", "a", "", ""]);
    assert!(has_wildcards("a/+") && has_wildcards("#") && !has_wildcards("a/b"));
}

#[test]
fn matching() {
    for (filter, name, expected) in [
        // The standard's examples (4.7.1, 4.7.2).
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
        ("sport/#", "sport", true),
        ("#", "sport/tennis", true),
        ("sport/tennis/+", "sport/tennis/player1", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("#", "$SYS/broker", false),
        ("+/monitor/Clients", "$SYS/monitor/Clients", false),
        ("$SYS/#", "$SYS/monitor/Clients", true),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
        // 4.7.3: case, spaces and slashes count.
        ("ACCOUNTS", "Accounts", false),
        ("Accounts payable", "Accounts payable", true),
        ("/finance", "finance", false),
        ("finance/", "finance", false),
        // Edges.
        ("#", "/", true),
        ("/#", "/", true),
        ("/#", "", true),
        ("+/#", "a", true),
        ("+", "$SYS", false),
        ("$SYS/#", "$SYS", true),
        ("a/#", "ab", false),
        ("a/#", "b/a", false),
        ("a/+/c", "a//c", true),
        ("a/b", "a/b/c", false),
        ("a/b/c", "a/b", false),
        ("a/$b", "a/$b", true),
        ("a/+", "a/$b", true),
        ("a/#", "a/$b/c", true),
    ] {
        assert_eq!(matches(filter, name), expected, "{filter} {name}");
    }
}

#[test]
fn covering() {
    for (wide, narrow, expected) in [
        ("a/b", "a/b", true),
        ("#", "a/+/c", true),
        ("#", "#", true),
        ("#", "+/#", true),
        ("+/#", "#", true),
        ("+/+/#", "#", false),
        ("a/+/#", "a/#", false),
        ("a/#", "a/+/#", true),
        ("a/#", "a", true),
        ("a/#", "a/#", true),
        ("a/+", "a/#", false),
        ("a", "a/#", false),
        ("a/+", "a/b", true),
        ("a/b", "a/+", false),
        ("+/+", "a/+", true),
        ("#", "$SYS/#", false),
        ("+/#", "$SYS/#", false),
        ("+", "$SYS", false),
        ("$SYS/#", "$SYS/a", true),
        ("$SYS/#", "#", false),
        ("a/#", "a/$b", true),
    ] {
        assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
    }
}

/// All names of one to five levels over an alphabet with a literal that no filter uses: for each filter here, what
/// holds for these names holds for all (a filter has at most four levels).
fn universe() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut last: Vec<String> = ["a", "b", "other", "", "$a", "$other"].map(String::from).to_vec();
    all.extend(last.iter().cloned());
    for _ in 1..5 {
        last = last
            .iter()
            .flat_map(|name| ["a", "b", "other", ""].map(|level| format!("{name}/{level}")))
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![2 => Just("a"), 1 => Just("b"), 1 => Just(""), 3 => Just("+")];
    let first = prop_oneof![6 => level.clone(), 1 => Just("$a")];
    (first, proptest::collection::vec(level, 0..3), any::<bool>(), 0..12_u8).prop_map(
        |(first, rest, hash, alone)| {
            if alone == 0 {
                return "#".to_owned();
            }
            let mut levels = vec![first];
            levels.extend(rest);
            if hash {
                levels.push("#");
            }
            levels.join("/")
        },
    )
}

/// Matching by the definition, on whole lists of levels: the model of `matches`.
fn matches_model(filter: &str, name: &str) -> bool {
    let filter_levels: Vec<&str> = filter.split('/').collect();
    let name_levels: Vec<&str> = name.split('/').collect();
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (fixed, open) = match filter_levels.split_last() {
        Some((&"#", parent)) => (parent, true),
        _ => (&filter_levels[..], false),
    };
    let enough = if open { name_levels.len() >= fixed.len() } else { name_levels.len() == fixed.len() };
    enough && fixed.iter().zip(&name_levels).all(|(filter, name)| *filter == "+" || filter == name)
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn covers_is_inclusion(wide in filter(), narrow in filter()) {
        let names = universe();
        let mut all = true;
        for name in &names {
            prop_assert_eq!(matches(&wide, name), matches_model(&wide, name), "{} {}", wide, name);
            all &= !matches(&narrow, name) || matches(&wide, name);
        }
        prop_assert_eq!(covers(&wide, &narrow), all, "{} {}", wide, narrow);
    }

    #[test]
    fn a_valid_name_is_a_filter_of_itself(text in "[ab$/]{1,12}") {
        prop_assert_eq!(validate_name(&text), Ok(()));
        prop_assert!(matches(&text, &text) && covers(&text, &text));
    }

    #[test]
    fn any_text_is_judged(text in "\\PC{0,20}", other in "[ab+#/$]{0,12}") {
        for topic in [&text, &other] {
            let name = validate_name(topic).is_ok();
            let filter = validate_filter(topic).is_ok();
            prop_assert!(!name || filter || topic.starts_with('$'), "a name that is no filter: {}", topic);
            prop_assert_eq!(name && filter, filter && !has_wildcards(topic));
            let _ = (matches(topic, &text), covers(&other, topic), shared(topic), exclusive(topic));
        }
    }
}
