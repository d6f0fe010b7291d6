// MQTT.js in a browser against a broker: what tests/browser.rs opens in Chromium. Every client goes through the steps of `?steps=` at
// each of `&urls=` by MQTT 3.1.1 and 5, and says how far it is with a line to the test's server: `ready NAME`, `done NAME`.
"use strict";

const query = new URLSearchParams(location.search);
const PATIENCE = 10_000;

// One after the other, so that lines arrive in their order.
let saying = Promise.resolve();
function say(line) {
  saying = saying.then(() => fetch("/say", { method: "POST", body: line }));
  return saying;
}

function within(promise, what) {
  const late = new Promise((_, no) => setTimeout(() => no(new Error(`waited in vain: ${what}`)), PATIENCE));
  return Promise.race([promise, late]);
}

function check(is, wanted, what) {
  if (JSON.stringify(is) !== JSON.stringify(wanted)) {
    throw new Error(`${what}: ${JSON.stringify(is)}, wanted ${JSON.stringify(wanted)}`);
  }
}

/** A connected client whose messages are taken one by one. */
class Client {
  constructor(mqtt, version) {
    this.mqtt = mqtt;
    this.version = version;
    this.kept = [];
    this.takers = [];
    mqtt.on("message", (topic, payload, packet) => {
      const { qos, retain, dup, properties } = packet;
      const message = { topic, payload, qos, retain, dup, properties };
      const taker = this.takers.shift();
      taker ? taker(message) : this.kept.push(message);
    });
  }

  static connect(url, version, clientId, persistent = false) {
    const options = { protocolVersion: version, clientId, clean: !persistent, reconnectPeriod: 200, keepalive: 30 };
    if (persistent && version === 5) options.properties = { sessionExpiryInterval: 600 };
    const client = new Client(mqtt.connect(url, options), version);
    const connected = new Promise((yes, no) => {
      client.mqtt.once("connect", () => yes(client));
      client.mqtt.once("error", no);
      // What a browser tells of a connection that does not come about.
      client.mqtt.once("close", () => no(new Error("closed before it was connected")));
    });
    return within(connected, `${clientId}: connect`);
  }

  async subscribe(filter, qos) {
    const granted = await within(this.mqtt.subscribeAsync(filter, { qos }), `subscribe ${filter}`);
    check(granted[0].qos, qos, `granted for ${filter}`);
  }

  publish(topic, payload, options) {
    return within(this.mqtt.publishAsync(topic, payload, options), `publish to ${topic}, ${JSON.stringify(options)}`);
  }

  next() {
    const next = new Promise((yes) => (this.kept.length > 0 ? yes(this.kept.shift()) : this.takers.push(yes)));
    return within(next, "a message");
  }

  async expect(topic, text, qos, retain = false) {
    const message = await this.next();
    const is = [message.topic, new TextDecoder().decode(message.payload), message.qos, message.retain];
    check(is, [topic, text, qos, retain], "message");
    return message;
  }
}

const STEPS = {
  /** Subscribes and publishes all that there is; then answers what the test sends. */
  async round(url, version, name) {
    const client = await Client.connect(url, version, name);
    await client.subscribe(`t/${name}/#`, 2);
    for (const qos of [0, 1, 2]) {
      await client.publish(`t/${name}/q`, `at ${qos}`, { qos });
      await client.expect(`t/${name}/q`, `at ${qos}`, qos);
    }

    const large = new Uint8Array(256 * 1024).map((_, index) => index * 31 + (index >> 8));
    await client.publish(`t/${name}/large`, large, { qos: 1 });
    const message = await client.next();
    check([message.topic, message.payload.length], [`t/${name}/large`, large.length], "large payload");
    check(large.every((byte, index) => byte === message.payload[index]), true, "large payload unaltered");

    await client.publish(`t/${name}/kept`, "kept", { qos: 1, retain: true });
    await client.expect(`t/${name}/kept`, "kept", 1);
    const late = await Client.connect(url, version, `${name}-late`);
    await late.subscribe(`t/${name}/kept`, 1);
    await late.expect(`t/${name}/kept`, "kept", 1, true);
    await late.mqtt.endAsync();

    if (version === 5) {
      const properties = { userProperties: { from: "a browser" }, contentType: "text/plain" };
      await client.publish(`t/${name}/5`, "x", { qos: 1, properties });
      const { properties: back } = await client.expect(`t/${name}/5`, "x", 1);
      check([back.userProperties.from, back.contentType], ["a browser", "text/plain"], "properties");
    }

    await say(`ready ${name}`);
    await client.expect(`t/${name}/ask`, "from mosquitto", 2);
    await client.publish(`answers/${name}`, "from-the-browser", { qos: 2 });
    await client.mqtt.endAsync();
  },

  /** Loses the broker and comes back to its session by itself. */
  async reconnect(url, version, name) {
    const client = await Client.connect(url, version, name, true);
    await client.subscribe(`t/${name}/#`, 1);
    await client.publish(`t/${name}/q`, "before", { qos: 1 });
    await client.expect(`t/${name}/q`, "before", 1);
    const lost = new Promise((yes) => client.mqtt.once("close", yes));
    const back = new Promise((yes) => client.mqtt.once("connect", yes));
    await say(`ready ${name}`);
    await within(lost, "the connection ends");
    const sent = client.publish(`t/${name}/q`, "meanwhile", { qos: 1 });
    await say(`lost ${name}`);
    check((await within(back, "connected again")).sessionPresent, true, "session present");
    await sent;
    // Its acknowledgement may have been lost with the broker: then "before" comes once more, and says so.
    let message = await client.next();
    if (message.dup) message = await client.next();
    check([message.topic, new TextDecoder().decode(message.payload)], [`t/${name}/q`, "meanwhile"], "message");
    await say(`back ${name}`);
    await client.expect(`t/${name}/ask`, "from mosquitto", 1);
    await client.mqtt.endAsync();
  },
};

for (const url of query.get("urls").split(",")) {
  for (const version of [4, 5]) {
    const name = `${new URL(url).protocol.replace(":", "")}-${version}`;
    STEPS[query.get("steps")](url, version, name).then(
      () => say(`done ${name}`),
      (error) => say(`failed ${name}: ${error.message}`),
    );
  }
}
