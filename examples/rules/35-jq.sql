-- What paths and functions do not reach, a jq program does: the alarms that are on, wherever in a nested report, a row for each.
-- jq runs in a process of its own, within bounds (here 500 ms a call), and costs more than a path: docs/rules.md.
-- try: plants/north/report {"lines":[{"name":"a","machines":[{"id":"p7","alarms":{"heat":true,"door":false}}]},{"name":"b","machines":[{"id":"s1","alarms":{"oil":true}}]}]}
-- => local "plants/north/alarms/heat": {"line":"a","machine":"p7","kind":"heat"}
-- => local "plants/north/alarms/oil": {"line":"b","machine":"s1","kind":"oil"}
-- try: plants/north/report {"lines":[]}
CREATE RULE alarms AS
INSERT INTO local."plants/${topic[2]}/alarms/${kind}"
FOREACH jq('.lines[] | .name as $line | .machines[] | .id as $machine
  | .alarms | to_entries[] | select(.value) | {$line, $machine, kind: .key}', payload, 500) AS a
DO a.line AS line, a.machine AS machine, a.kind AS kind
FROM "plants/+/report";
