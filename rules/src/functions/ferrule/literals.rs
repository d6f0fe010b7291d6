//! What is wrong with a call whatever the message is: arguments that stand in the rule and can never be right. A rule is refused
//! with it when it is loaded, instead of counting errors with each message.

use super::*;

/// The first argument that is a mistake, and why. Arguments that are no literals are `None`.
pub(crate) fn mistake(name: &str, args: &[Option<Value<'_>>]) -> Option<(usize, String)> {
    let word = |at: usize| match args.get(at) {
        Some(Some(Value::Text(text))) => Some(&**text),
        _ => None,
    };
    let number = |at: usize| match args.get(at) {
        Some(Some(Value::Int(i))) => Some(*i as f64),
        Some(Some(Value::Float(f))) => Some(*f),
        _ => None,
    };
    let one_of = |at: usize, known: &[&str]| {
        let text = word(at).filter(|text| !known.iter().any(|known| known.eq_ignore_ascii_case(text)))?;
        // Without the plurals of units.
        let known: Vec<&str> = known.iter().copied().filter(|known| !known.ends_with('s')).collect();
        Some((at, format!("`{name}` knows no '{text}'; one of {}", known.join(", "))))
    };
    let zone = |at: usize| {
        let text = word(at).filter(|text| emqx::offset_in(text.as_bytes()).is_none())?;
        Some((at, format!("'{text}' is no zone; write 'Z' or an offset as '+01:00'")))
    };
    match name {
        // Flags change what a pattern may be.
        "regexp_like" | "regexp_count" | "regexp_matches" | "regexp_split" if args.len() > 2 => None,
        "regexp_replace" if args.len() > 3 => None,
        _ if name.starts_with("regexp_") => {
            let problem = word(1).and_then(pattern::problem)?;
            Some((1, format!("this is no regular expression: {problem}")))
        }
        "topic_matches" => {
            let filter = word(1).filter(|filter| !regexp::is_filter(filter))?;
            Some((1, format!("'{filter}' is no topic filter: wildcards are whole levels, `#` the last")))
        }
        "every" => {
            let text = word(0)?;
            Some((0, format!("`every` takes milliseconds, as 60000 for a minute, found '{text}'")))
        }
        "hysteresis" => {
            let (low, high) = (number(1)?, number(2)?);
            (low > high).then(|| (1, "the lower bound comes first, then the higher one".to_owned()))
        }
        "smooth" => {
            let part = number(1).filter(|part| !(0.0..=1.0).contains(part))?;
            Some((1, format!("`smooth` takes a part from 0 to 1, found {part}")))
        }
        "format" => print::mistake(word(0)?, args.len() - 1).map(|problem| (0, problem)),
        "date_trunc" => one_of(0, &time::UNITS).or_else(|| zone(2)),
        "date_add" | "date_diff" => one_of(0, &time::UNITS).or_else(|| zone(3)),
        "date_part" => one_of(0, &time::PARTS).or_else(|| zone(2)),
        "format_time" => {
            let format = word(1).filter(|format| !time::is_format(format));
            format.map(|format| (1, format!("'{format}' is no format of strftime"))).or_else(|| zone(2))
        }
        "parse_time" => zone(2),
        "array_sort" => one_of(1, &["asc", "desc"]),
        "base64_encode" => one_of(1, &["urlsafe", "standard"]),
        "read_float" => one_of(3, &binary::ORDERS),
        "int_bytes" => one_of(2, &binary::ORDERS),
        _ => None,
    }
}
