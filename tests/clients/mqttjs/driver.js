// MQTT.js as the tests drive it: README.md says how.
"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const mqtt = require("mqtt");

const LEVELS = { "3.1": 3, "3.1.1": 4, 5: 5 };
const clients = new Map();
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/** What a message has beyond topic, payload, QoS and retain, as MQTT.js names it. */
function properties({ user, content_type, response_topic, correlation, expiry }) {
  const all = {
    contentType: content_type,
    responseTopic: response_topic,
    messageExpiryInterval: expiry,
    correlationData: correlation && Buffer.from(correlation),
  };
  for (const [name, value] of user ?? []) {
    all.userProperties ??= {};
    all.userProperties[name] = [].concat(all.userProperties[name] ?? [], value);
  }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

function message(topic, payload, packet) {
  const of = packet.properties ?? {};
  const user = Object.entries(of.userProperties ?? {});
  return {
    topic,
    payload: payload.toString(),
    qos: packet.qos,
    retain: packet.retain,
    user: user.flatMap(([name, values]) => [].concat(values).map((value) => [name, value])),
    content_type: of.contentType,
    response_topic: of.responseTopic,
    correlation: of.correlationData?.toString(),
    expiry: of.messageExpiryInterval,
    subscriptions: [].concat(of.subscriptionIdentifier ?? []),
  };
}

function connect(command) {
  const { client, url, ca, version, clean, expiry, alias_max, username, password, will } = command;
  const options = { protocolVersion: LEVELS[version], clientId: client, clean, reconnectPeriod: 0, username, password };
  if (version === "3.1") options.protocolId = "MQIsdp";
  if (ca) options.ca = fs.readFileSync(ca);
  if (will) {
    options.will = { ...will, payload: Buffer.from(will.payload) };
    if (version === "5") options.will.properties = properties(will);
  }
  if (version === "5") {
    options.properties = { sessionExpiryInterval: expiry ?? 0 };
    if (alias_max) options.properties.topicAliasMaximum = alias_max;
  }
  return new Promise((yes, no) => {
    const made = mqtt.connect(url, options);
    clients.set(client, made);
    made.on("message", (...heard) => say({ client, message: message(...heard) }));
    made.once("connect", (ack) => yes({ code: ack.reasonCode ?? ack.returnCode, session_present: ack.sessionPresent }));
    made.on("error", no);
    made.once("close", () => no(new Error("closed")));
  });
}

async function run(command) {
  if (command.do === "connect") return connect(command);
  const client = clients.get(command.client);
  const five = client.options.protocolVersion === 5;
  switch (command.do) {
    case "subscribe": {
      const options = { qos: command.qos };
      if (command.subscription) options.properties = { subscriptionIdentifier: command.subscription };
      // The error of a refusal has no code, so it is read from the packet.
      return new Promise((yes, no) => {
        client.subscribe(command.filter, options, (error, _, packet) => {
          packet ? yes({ code: packet.granted[0] }) : no(error);
        });
      });
    }
    case "publish": {
      const options = { qos: command.qos, retain: command.retain };
      if (five) options.properties = properties(command);
      if (command.alias) options.properties.topicAlias = command.alias;
      const ack = await client.publishAsync(command.topic, command.payload, options);
      return { code: ack?.reasonCode ?? 0 };
    }
    case "disconnect":
      await client.endAsync();
      return { code: 0 };
    default:
      throw new Error(`what is ${command.do}?`);
  }
}

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    run(command).then(
      (done) => say({ id: command.id, ...done }),
      (error) => say({ id: command.id, code: error.code, error: error.message }),
    );
  })
  .on("close", () => process.exit(0));
