"""paho-mqtt as the tests drive it: README.md says how."""

import json
import sys
import threading
import urllib.parse

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

LEVELS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}
# What a message has beyond topic, payload, QoS and retain: (ours, Paho's).
NAMES = [
    ("user", "UserProperty"),
    ("content_type", "ContentType"),
    ("response_topic", "ResponseTopic"),
    ("correlation", "CorrelationData"),
    ("expiry", "MessageExpiryInterval"),
    ("alias", "TopicAlias"),
]
CLIENTS = {}
SAYING = threading.Lock()


def say(**line):
    with SAYING:
        print(json.dumps(line), flush=True)


def properties(packet, command):
    """What `command` says of them."""
    made = Properties(packet)
    for ours, theirs in NAMES:
        if (value := command.get(ours)) is not None:
            if ours == "correlation":
                value = value.encode()
            elif ours == "user":
                value = [tuple(pair) for pair in value]
            setattr(made, theirs, value)
    return made


class Client:
    """A client, and the answers that it waits for: by the packet's identifier, or `connect`."""

    def __init__(self, command):
        self.name, self.five = command["client"], command["version"] == "5"
        self.waiting, self.early, self.lock = {}, {}, threading.Lock()
        clean = {} if self.five else {"clean_session": command["clean"]}
        url = urllib.parse.urlsplit(command["url"])
        made = self.mqtt = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=self.name,
            protocol=LEVELS[command["version"]],
            transport="websockets" if url.scheme.startswith("ws") else "tcp",
            reconnect_on_failure=False,
            **clean,
        )
        if "ca" in command:
            made.tls_set(command["ca"])
        if "username" in command:
            made.username_pw_set(command["username"], command["password"])
        if will := command.get("will"):
            more = {"properties": properties(PacketTypes.WILLMESSAGE, will)} if self.five else {}
            made.will_set(will["topic"], will["payload"], will["qos"], will["retain"], **more)
        made.on_connect = self.connected
        made.on_message = self.heard
        made.on_subscribe = lambda _c, _d, mid, codes, _p: self.acknowledged(mid, code=codes[0].value)
        made.on_publish = lambda _c, _d, mid, code, _p: self.acknowledged(mid, code=code.value)
        self.waiting["connect"] = command["id"]
        more = {}
        if self.five:
            asked = Properties(PacketTypes.CONNECT)
            asked.SessionExpiryInterval = command.get("expiry", 0)
            asked.TopicAliasMaximum = command.get("alias_max", 0)
            more = {"clean_start": command["clean"], "properties": asked}
        made.connect(url.hostname, url.port, **more)
        made.loop_start()

    def connected(self, _client, _data, flags, code, _properties):
        value = code.value
        if not self.five and value:
            # Paho tells refusals of 3.1.1 by the codes of 5, as their table of names pairs them.
            value = {0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}[value]
        self.acknowledged("connect", code=value, session_present=flags.session_present)

    def heard(self, _client, _data, message):
        told = {"topic": message.topic, "payload": message.payload.decode()}
        told |= {"qos": message.qos, "retain": bool(message.retain)}
        if self.five:
            of = message.properties
            told |= {ours: getattr(of, theirs) for ours, theirs in NAMES if hasattr(of, theirs)}
            if "correlation" in told:
                told["correlation"] = told["correlation"].decode()
            told["subscriptions"] = getattr(of, "SubscriptionIdentifier", [])
        say(client=self.name, message=told)

    def acknowledged(self, what, **answer):
        # It may come before the call returns that tells the identifier.
        with self.lock:
            if what not in self.waiting:
                self.early[what] = answer
                return
            command = self.waiting.pop(what)
        say(id=command, **answer)

    def wait(self, command, what):
        with self.lock:
            if what not in self.early:
                self.waiting[what] = command
                return
            answer = self.early.pop(what)
        say(id=command, **answer)

    def subscribe(self, command):
        filter_, qos = command["filter"], command["qos"]
        if self.five:
            asked = Properties(PacketTypes.SUBSCRIBE)
            if number := command.get("subscription"):
                asked.SubscriptionIdentifier = number
            _, mid = self.mqtt.subscribe(filter_, options=SubscribeOptions(qos), properties=asked)
        else:
            _, mid = self.mqtt.subscribe(filter_, qos)
        self.wait(command["id"], mid)

    def publish(self, command):
        more = {"properties": properties(PacketTypes.PUBLISH, command)} if self.five else {}
        sent = self.mqtt.publish(command["topic"], command["payload"], command["qos"], command["retain"], **more)
        self.wait(command["id"], sent.mid)

    def disconnect(self, command):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()
        say(id=command["id"], code=0)


def main():
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "connect":
                CLIENTS[command["client"]] = Client(command)
            else:
                getattr(CLIENTS[command["client"]], command["do"])(command)
        except Exception as error:  # pylint: disable=broad-except
            say(id=command["id"], error=repr(error))


main()
