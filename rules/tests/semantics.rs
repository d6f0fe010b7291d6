//! What expressions mean: tables of expression, value and type errors.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{message, rules, run, value};
use ferrule_rules::*;

const PAYLOAD: &str = r#"{"i":7,"f":2.5,"s":"abc","t":true,"n":null,"a":[10,20,[1,2]],"o":{"x":{"y":"z"},"b c":1,"1":"one"},
    "big":123456789012345678901234567890,"esc":"a\"\u00e9\ud83d\ude00","neg":-9223372036854775808,"e":1e3,"json":"{\"k\":1}"}"#;

fn check(table: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (expr, expected, errors) in table {
        let (got, got_errors) = value(expr, PAYLOAD);
        if got != *expected || got_errors.join(" ") != *errors {
            wrong.push(format!("{expr}: {got} [{}], expected {expected} [{errors}]", got_errors.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths() {
    check(&[
        ("payload.i", "7", ""),
        ("payload.f", "2.5", ""),
        ("payload.e", "1000.0", ""),
        ("payload.neg", "-9223372036854775808", ""),
        ("payload.big", "123456789012345678901234567890", ""),
        ("payload.esc", "\"a\\\"é😀\"", ""),
        ("payload.a", "[10,20,[1,2]]", ""),
        ("payload.a[1]", "10", ""),
        ("payload.a[-1]", "[1,2]", ""),
        ("payload.a[-1][2]", "2", ""),
        ("payload.a[3][-2]", "1", ""),
        ("payload.a[9]", "null", ""),
        ("payload.a[-9]", "null", ""),
        ("payload.a[payload.a[3][1] + 1]", "20", ""),
        ("payload.a['x']", "null", ""),
        ("payload.o.x.y", "\"z\"", ""),
        ("payload.o.'b c'", "1", ""),
        ("payload.o.\"b c\"", "1", ""),
        ("payload.o.1", "\"one\"", ""),
        ("payload.o['x'].y", "\"z\"", ""),
        ("payload.none", "null", ""),
        ("payload.none.deeper[3]", "null", ""),
        ("payload.s.x", "null", ""),
        ("payload.json.k", "null", ""),
        ("payload.a.x", "null", ""),
        ("payload.o[1]", "null", ""),
        ("[1, [2, 3]][2][1]", "2", ""),
        ("topic[1]", "\"factory\"", ""),
        ("topic[-1]", "\"press\"", ""),
        ("topic[4]", "null", ""),
        ("topic[payload.a[3][2]]", "\"line-3\"", ""),
    ]);
}

#[test]
fn columns() {
    check(&[
        ("clientid", "\"press-7\"", ""),
        ("username", "\"sensors\"", ""),
        ("topic", "\"factory/line-3/press\"", ""),
        ("qos", "1", ""),
        ("retain", "true", ""),
        ("flags.retain", "true", ""),
        ("flags.dup", "false", ""),
        ("flags", "{\"retain\":true,\"dup\":false}", ""),
        ("timestamp", "1541152486013", ""),
        ("id", "\"edge-1.b.0.42\"", ""),
        ("message_id", "\"edge-1.b.0.42\"", ""),
        ("edge", "null", ""),
        ("peerhost", "\"10.0.0.7\"", ""),
        ("user_properties", "{}", ""),
        ("user_properties.x", "null", ""),
        ("event", "\"message.publish\"", ""),
    ]);
}

#[test]
fn arithmetic() {
    check(&[
        ("1 + 2 * 3", "7", ""),
        ("(1 + 2) * 3", "9", ""),
        ("7 / 2", "3.5", ""),
        ("6 / 2", "3.0", ""),
        ("7 div 2", "3", ""),
        ("-7 div 2", "-3", ""),
        ("-7 mod 2", "-1", ""),
        ("7 % 4", "3", ""),
        ("7.5 mod 2", "1.5", ""),
        ("7.5 div 2", "null", "type_mismatch"),
        ("1 + 1.5", "2.5", ""),
        ("- payload.i", "-7", ""),
        ("-(-3)", "3", ""),
        ("1 - -1", "2", ""),
        ("1 / 0", "null", "division_by_zero"),
        ("1 div 0", "null", "division_by_zero"),
        ("1 mod 0", "null", "division_by_zero"),
        ("1.0 mod 0.0", "null", "division_by_zero"),
        ("9223372036854775807 + 1", "null", "integer_overflow"),
        ("-9223372036854775808", "-9223372036854775808", ""),
        ("payload.neg div -1", "null", "integer_overflow"),
        ("payload.neg mod -1", "0", ""),
        ("payload.big + 1", "null", "integer_overflow"),
        ("1e308 * 10", "null", "not_finite"),
        ("'a' + 'b'", "\"ab\"", ""),
        ("'a' + 1", "null", "type_mismatch"),
        ("payload.s * 2", "null", "type_mismatch"),
        ("payload.none + 1", "null", ""),
        ("NULL + 'x'", "null", ""),
        ("[1] + [2]", "null", "type_mismatch"),
    ]);
}

#[test]
fn comparison_and_logic() {
    check(&[
        ("1 = 1.0", "true", ""),
        ("9007199254740993 = 9007199254740992.0", "false", ""),
        ("'10' < '9'", "true", ""),
        ("'a' <> 'b'", "true", ""),
        ("'a' != 'a'", "false", ""),
        ("TRUE > FALSE", "true", ""),
        ("1 = '1'", "null", "type_mismatch"),
        ("TRUE = 1", "null", "type_mismatch"),
        ("payload.none = 1", "null", ""),
        ("payload.n IS NULL", "true", ""),
        ("payload.none IS NULL", "true", ""),
        ("payload.i IS NOT NULL", "true", ""),
        ("payload.a[3] = [1, 2.0]", "true", ""),
        ("payload.a[3] <> [1, 3]", "true", ""),
        ("payload.a < [1]", "null", "type_mismatch"),
        ("payload.big > 1", "true", ""),
        ("payload.big = payload.big", "true", ""),
        ("payload.i BETWEEN 7 AND 8", "true", ""),
        ("payload.i NOT BETWEEN 7 AND 8", "false", ""),
        ("payload.i BETWEEN NULL AND 6", "false", ""),
        ("payload.i BETWEEN NULL AND 8", "null", ""),
        ("payload.i IN (1, 'x', 7)", "true", ""),
        ("payload.i IN (1, 'x')", "false", ""),
        ("payload.i IN (1, NULL)", "null", ""),
        ("payload.i NOT IN (1, NULL)", "null", ""),
        ("payload.i NOT IN (1, 2)", "true", ""),
        ("payload.none IN (1)", "null", ""),
        ("TRUE AND NULL", "null", ""),
        ("FALSE AND NULL", "false", ""),
        ("NULL AND FALSE", "false", ""),
        ("TRUE OR NULL", "true", ""),
        ("NULL OR TRUE", "true", ""),
        ("NULL OR FALSE", "null", ""),
        ("NOT TRUE", "false", ""),
        ("NOT NULL", "null", ""),
        ("NOT 1 = 2", "true", ""),
        ("NOT payload.s", "null", "type_mismatch"),
        ("payload.t AND payload.i", "null", "type_mismatch"),
        ("1 = 2 OR 1 = 1 AND 2 = 2", "true", ""),
        ("(1 = 1 OR 1 = 1) AND 2 = 3", "false", ""),
        // The second part is not evaluated, so its error does not count.
        ("FALSE AND 1 / 0 = 1", "false", ""),
        ("TRUE OR 1 / 0 = 1", "true", ""),
    ]);
}

#[test]
fn case() {
    check(&[
        ("CASE WHEN payload.i > 5 THEN 'high' WHEN TRUE THEN 'low' END", "\"high\"", ""),
        ("CASE WHEN payload.i > 9 THEN 'high' ELSE 'low' END", "\"low\"", ""),
        ("CASE WHEN FALSE THEN 1 END", "null", ""),
        ("CASE WHEN NULL THEN 1 ELSE 2 END", "2", ""),
        ("CASE payload.s WHEN 1 THEN 'one' WHEN 'abc' THEN 'it' END", "\"it\"", ""),
        ("CASE payload.i WHEN 1 THEN 'one' ELSE payload.s END", "\"abc\"", ""),
        ("CASE NULL WHEN NULL THEN 1 ELSE 2 END", "2", ""),
        ("1 + CASE payload.i WHEN 7 THEN CASE WHEN TRUE THEN 1 END ELSE 5 END", "2", ""),
        ("CASE WHEN payload.t THEN 1 ELSE payload.i END = 7", "false", ""),
    ]);
}

#[test]
fn literals() {
    check(&[
        ("'it''s'", "\"it's\"", ""),
        ("'a\\n'", "\"a\\\\n\"", ""),
        ("1.5e3", "1500.0", ""),
        ("[1, 'a', NULL, [2.0]]", "[1,\"a\",null,[2.0]]", ""),
        ("[]", "[]", ""),
        ("TRUE", "true", ""),
    ]);
}

#[test]
fn functions_at_their_edges() {
    check(&[
        ("round(payload.big)", "123456789012345678901234567890", ""),
        ("round(1e300)", "null", "integer_overflow"),
        ("round(0.5, 16)", "null", "bad_argument"),
        ("round(-0.125, 2)", "-0.13", ""),
        ("round(123456789.987, 2)", "123456789.99", ""),
        ("abs(payload.neg)", "null", "integer_overflow"),
        ("abs('x')", "null", "type_mismatch"),
        ("length(payload.o)", "3", ""),
        ("length(payload.a)", "3", ""),
        ("length(1)", "null", "type_mismatch"),
        ("substr('abc', 0)", "null", "bad_argument"),
        ("substr('héé', 2, 1)", "\"é\"", ""),
        ("substr('abc', -9, 2)", "\"ab\"", ""),
        ("substr('abc', 2, -1)", "null", "bad_argument"),
        ("substr(upper('abc'), 2)", "\"BC\"", ""),
        ("timestamp_ms('2024-02-30T00:00:00Z')", "null", "bad_argument"),
        ("timestamp_ms('2024-02-29 12:00:00')", "1709208000000", ""),
        ("timestamp_ms('1969-12-31T23:59:59.999Z')", "-1", ""),
        ("UPPER(payload.s)", "\"ABC\"", ""),
    ]);
}

#[test]
fn payloads_that_are_not_json() {
    for (expr, payload, expected, errors) in [
        ("payload.a", "not json", "null", "invalid_json"),
        ("payload.a", "", "null", "invalid_json"),
        ("payload", "not json", "\"not json\"", ""),
        ("payload.a", "5", "null", ""),
        ("payload[2]", "[1,2]", "2", ""),
        ("payload[-1]", "[1,2]", "2", ""),
        ("payload.a", "{\"a\":1e999}", "null", "not_finite"),
        ("length(payload)", "äbc", "3", ""),
    ] {
        assert_eq!(
            value(expr, payload),
            (expected.to_owned(), Vec::from_iter((!errors.is_empty()).then_some(errors))),
            "{expr}"
        );
    }
    let set = rules("CREATE RULE r AS INSERT INTO log SELECT payload AS p, length(payload) AS n FROM \"#\";");
    let (_, rows, state) = run(&set, &message(b"\xff\x00"));
    assert_eq!(rows.rows[0].body, Body::Json(b"{\"p\":{\"$bytes\":\"ff00\"},\"n\":null}"[..].into()));
    assert_eq!(state.counters.type_errors[TypeError::TypeMismatch as usize], 1);
}

#[test]
fn too_deep_a_payload_fails_the_rule_alone() {
    let set = rules("CREATE RULE r AS INSERT INTO log SELECT payload.a AS a FROM \"#\";");
    let deep = format!("{{\"x\":{}", "[".repeat(1000));
    let (ended, _, state) = run(&set, &message(deep.as_bytes()));
    assert_eq!(ended, Step::Failed(Failure::TooDeep));
    assert_eq!(state.counters.failed[Failure::TooDeep as usize], 1);
    let last = state.last_failure.unwrap();
    assert_eq!((last.reason, last.payload.len(), last.cut), ("too_deep", 1005, false));
}

#[test]
fn names_of_aliases() {
    let row = |sql: &str| {
        let set = rules(&format!("CREATE RULE r AS INSERT INTO log {sql};"));
        let (ended, rows, _) = run(&set, &message(PAYLOAD.as_bytes()));
        match rows.rows.first().map(|r| r.body.clone()) {
            Some(Body::Json(json)) => String::from_utf8(json.to_vec()).unwrap(),
            other => format!("{ended:?} {other:?}"),
        }
    };
    for (sql, expected) in [
        ("SELECT payload.i AS x, x + 1 AS y FROM \"#\"", r#"{"x":7,"y":8}"#),
        ("SELECT payload.i AS x, x + 1 AS y FROM \"#\" WHERE y = 8", r#"{"x":7,"y":8}"#),
        ("SELECT payload.i AS x, x + 1 AS y FROM \"#\" WHERE y = 9", "NoMatch None"),
        (
            "SELECT payload.o AS o, o.x.y AS z FROM \"#\"",
            r#"{"o":{"x":{"y":"z"},"b c":1,"1":"one"},"z":"z"}"#,
        ),
        // A column of the message comes before an alias.
        (
            "SELECT 'q' AS clientid, clientid AS c FROM \"#\" WHERE clientid = 'press-7'",
            r#"{"clientid":"q","c":"press-7"}"#,
        ),
        // Without AS.
        (
            "SELECT clientid, payload.o.x.y, upper(payload.s), payload.i n FROM \"#\"",
            r#"{"clientid":"press-7","y":"z","upper":"ABC","n":7}"#,
        ),
        // Nested puts.
        ("SELECT 1 AS a.b, 2 AS a.c.d, 3 AS e FROM \"#\"", r#"{"a":{"b":1,"c":{"d":2}},"e":3}"#),
        (
            "SELECT payload.o AS o, 5 AS o.x, 6 AS o.n.m FROM \"#\"",
            r#"{"o":{"b c":1,"1":"one","x":5,"n":{"m":6}}}"#,
        ),
        ("SELECT payload.o AS o, 5 AS o.x.q FROM \"#\"", r#"{"o":{"x":{"y":"z","q":5},"b c":1,"1":"one"}}"#),
        ("SELECT payload.i AS o, 5 AS o.x FROM \"#\"", r#"{"o":{"x":5}}"#),
        ("SELECT 1 AS a.b, a.b + 1 AS c FROM \"#\"", r#"{"a":{"b":1},"c":2}"#),
        ("SELECT * FROM \"#\"", "Emit Some(Payload)"),
    ] {
        assert_eq!(row(sql), expected, "{sql}");
    }
}

#[test]
fn star_with_columns_over_any_payload() {
    for (payload, expected) in [
        (&b"{\"a\":{\"b\":1,\"c\":2},\"d\":3}"[..], r#"{"a":{"c":2,"b":9},"d":3,"k":"press-7"}"#),
        (b"{}", r#"{"a":{"b":9},"k":"press-7"}"#),
        (b"{\"a\":5}", r#"{"a":{"b":9},"k":"press-7"}"#),
        (b"[1, 2]", r#"{"payload":[1, 2],"a":{"b":9},"k":"press-7"}"#),
        (b"hello", r#"{"payload":"hello","a":{"b":9},"k":"press-7"}"#),
        (b"\xfe", r#"{"payload":{"$bytes":"fe"},"a":{"b":9},"k":"press-7"}"#),
        (b"", r#"{"payload":"","a":{"b":9},"k":"press-7"}"#),
    ] {
        let set = rules("CREATE RULE r AS INSERT INTO log SELECT *, 9 AS a.b, clientid AS k FROM \"#\";");
        let (_, rows, _) = run(&set, &message(payload));
        assert_eq!(rows.rows[0].body, Body::Json(expected.as_bytes().to_vec().into()), "{expected}");
    }
}
