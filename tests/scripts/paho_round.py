"""Eclipse Paho's Python client against a broker: `paho_round.py tcp|ws HOST:PORT`, `paho_round.py unix PATH`.

Prints `ok` and exits 0, or says what failed. `--ca FILE` makes it TLS, `--cert FILE --key FILE` shows a client's certificate,
`--tls 1.2` or `--tls 1.3` allows that version alone, `--alpn NAME` asks for a protocol, `--login NAME PASSWORD` logs in. Publishes
and subscribes at QoS 0, 1 and 2 by MQTT 3.1, 3.1.1 and 5, a retained message, a will, a persistent session, and a large payload.
"""

import argparse
import concurrent.futures
import os
import queue
import ssl
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

options = argparse.ArgumentParser()
options.add_argument("transport", choices=["tcp", "ws", "unix"])
options.add_argument("address")
for option in ("--ca", "--cert", "--key", "--alpn"):
    options.add_argument(option)
options.add_argument("--login", nargs=2)
options.add_argument("--tls", choices=["1.2", "1.3"])
ARGS = options.parse_args()
TRANSPORT = {"ws": "websockets"}.get(ARGS.transport, ARGS.transport)
# Paho wants a port of a Unix socket, too.
HOST, PORT = (ARGS.address, 1) if ARGS.transport == "unix" else ARGS.address.rsplit(":", 1)
PATIENCE = 10
NAMES = {mqtt.MQTTv31: "3.1", mqtt.MQTTv311: "3.1.1", mqtt.MQTTv5: "5"}


def tls():
    """What the options say of TLS."""
    context = ssl.create_default_context(cafile=ARGS.ca)
    if ARGS.cert:
        context.load_cert_chain(ARGS.cert, ARGS.key)
    if ARGS.tls:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{ARGS.tls.replace('.', '_')}"]
    if ARGS.alpn:
        context.set_alpn_protocols([ARGS.alpn])
    return context


class Client:
    """A connected client whose messages and events come by queues."""

    def __init__(self, name, version, clean=True, will=None):
        self.messages, self.events = queue.Queue(), queue.Queue()
        args = {} if version == mqtt.MQTTv5 else {"clean_session": clean}
        args |= {"client_id": name, "protocol": version, "transport": TRANSPORT}
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, **args)
        if ARGS.login:
            self.mqtt.username_pw_set(*ARGS.login)
        if ARGS.ca:
            self.mqtt.tls_set_context(tls())
        self.mqtt.on_message = lambda _client, _data, message: self.messages.put(message)
        self.mqtt.on_connect = lambda _c, _d, flags, code, _p: self.events.put(("connected", code, flags.session_present))
        self.mqtt.on_subscribe = lambda _c, _d, _mid, codes, _p: self.events.put(("subscribed", codes))
        if will:
            self.mqtt.will_set(*will)
        more = {}
        if version == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 600
            more = {"clean_start": clean, "properties": properties}
        self.mqtt.connect(HOST, int(PORT), keepalive=30, **more)
        self.mqtt.loop_start()
        event = self.events.get(timeout=PATIENCE)
        assert event[0] == "connected" and not event[1].is_failure, event
        self.session_present = event[2]

    def subscribe(self, topic, qos):
        self.mqtt.subscribe(topic, qos)
        event = self.events.get(timeout=PATIENCE)
        assert event[0] == "subscribed" and event[1][0].value == qos, event

    def publish(self, topic, payload, qos, retain=False):
        info = self.mqtt.publish(topic, payload, qos, retain)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), f"{topic} QoS {qos} not acknowledged"

    def expect(self, topic, payload, qos, retain=False):
        message = self.messages.get(timeout=PATIENCE)
        got = (message.topic, message.payload, message.qos, bool(message.retain))
        assert got == (topic, payload, qos, retain), got

    def close(self):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()


def round_trip(version):
    # Several of these may run with one broker.
    name = f"{NAMES[version]}-{os.getpid()}"
    reader, writer = Client(f"r{name}", version), Client(f"w{name}", version)
    for qos in (0, 1, 2):
        topic = f"paho/{name}/q{qos}"
        reader.subscribe(topic, qos)
        for sent in (0, 1, 2):
            writer.publish(topic, f"{sent}".encode(), sent)
            reader.expect(topic, f"{sent}".encode(), min(qos, sent))
    large = bytes(range(256)) * 1024
    writer.publish(f"paho/{name}/q2", large, 2)
    reader.expect(f"paho/{name}/q2", large, 2)

    writer.publish(f"paho/{name}/kept", b"kept", 1, retain=True)
    reader.subscribe(f"paho/{name}/+", 1)
    # Whatever else is retained under it has been published without the flag.
    reader.expect(f"paho/{name}/kept", b"kept", 1, retain=True)

    reader.subscribe(f"wills/{name}", 1)
    lost = Client(f"l{name}", version, will=(f"wills/{name}", b"gone", 1))
    lost.mqtt.loop_stop()
    lost.mqtt.socket().close()
    reader.expect(f"wills/{name}", b"gone", 1)

    away = Client(f"p{name}", version, clean=False)
    assert not away.session_present
    away.subscribe(f"away/{name}", 1)
    away.close()
    for n in range(20):
        writer.publish(f"away/{name}", f"{n}".encode(), 1)
    back = Client(f"p{name}", version, clean=False)
    # MQTT 3.1 has no flag to say so.
    assert back.session_present or version == mqtt.MQTTv31, "the session is gone"
    for n in range(20):
        back.expect(f"away/{name}", f"{n}".encode(), 1)
    for client in (back, reader, writer):
        client.close()


def main():
    # Beside each other: Paho's threads wait for a second here and there.
    with concurrent.futures.ThreadPoolExecutor(len(NAMES)) as pool:
        rounds = {version: pool.submit(round_trip, version) for version in NAMES}
    for version, done in rounds.items():
        try:
            done.result()
        except BaseException:
            print(f"MQTT {NAMES[version]}:", file=sys.stderr)
            raise
    print("ok")


main()
