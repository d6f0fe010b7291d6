import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.eclipse.paho.mqttv5.client.IMqttToken;
import org.eclipse.paho.mqttv5.client.MqttAsyncClient;
import org.eclipse.paho.mqttv5.client.MqttCallback;
import org.eclipse.paho.mqttv5.client.MqttConnectionOptions;
import org.eclipse.paho.mqttv5.client.MqttDisconnectResponse;
import org.eclipse.paho.mqttv5.client.persist.MemoryPersistence;
import org.eclipse.paho.mqttv5.common.MqttException;
import org.eclipse.paho.mqttv5.common.MqttMessage;
import org.eclipse.paho.mqttv5.common.MqttSubscription;
import org.eclipse.paho.mqttv5.common.packet.MqttProperties;
import org.eclipse.paho.mqttv5.common.packet.UserProperty;

/** Eclipse Paho, MQTT 5. */
final class Paho5 implements Driver.Client, MqttCallback {
    private String name;
    private MqttAsyncClient mqtt;

    private static MqttProperties properties(JsonObject message) {
        MqttProperties made = new MqttProperties();
        made.setContentType(Driver.text(message, "content_type"));
        made.setResponseTopic(Driver.text(message, "response_topic"));
        made.setCorrelationData(Driver.bytes(message, "correlation"));
        if (message.has("expiry")) {
            made.setMessageExpiryInterval(message.get("expiry").getAsLong());
        }
        if (message.has("alias")) {
            made.setTopicAlias(message.get("alias").getAsInt());
        }
        if (message.has("user")) {
            List<UserProperty> user = new ArrayList<>();
            for (JsonElement pair : message.getAsJsonArray("user")) {
                JsonArray both = pair.getAsJsonArray();
                user.add(new UserProperty(both.get(0).getAsString(), both.get(1).getAsString()));
            }
            made.setUserProperties(user);
        }
        return made;
    }

    private static MqttMessage message(JsonObject message) {
        return new MqttMessage(Driver.bytes(message, "payload"), message.get("qos").getAsInt(),
            message.get("retain").getAsBoolean(), properties(message));
    }

    @Override
    public boolean connect(JsonObject command) throws Exception {
        name = Driver.text(command, "client");
        if (mqtt == null) {
            mqtt = new MqttAsyncClient(Driver.paho(Driver.text(command, "url")), name, new MemoryPersistence());
            mqtt.setCallback(this);
        }
        MqttConnectionOptions options = new MqttConnectionOptions();
        options.setCleanStart(command.get("clean").getAsBoolean());
        options.setSessionExpiryInterval(command.has("expiry") ? command.get("expiry").getAsLong() : 0);
        if (command.has("alias_max")) {
            options.setTopicAliasMaximum(command.get("alias_max").getAsInt());
        }
        if (command.has("ca")) {
            options.setSocketFactory(Driver.sockets(Driver.text(command, "ca")));
        }
        if (command.has("username")) {
            options.setUserName(Driver.text(command, "username"));
            options.setPassword(Driver.bytes(command, "password"));
        }
        if (command.has("will")) {
            JsonObject will = command.getAsJsonObject("will");
            options.setWill(Driver.text(will, "topic"), message(will));
            options.setWillMessageProperties(properties(will));
        }
        IMqttToken token = mqtt.connect(options);
        token.waitForCompletion();
        return token.getSessionPresent();
    }

    @Override
    public int subscribe(JsonObject command) throws Exception {
        MqttProperties properties = new MqttProperties();
        if (command.has("subscription")) {
            properties.setSubscriptionIdentifier(command.get("subscription").getAsInt());
        }
        MqttSubscription[] asked = {
            new MqttSubscription(Driver.text(command, "filter"), command.get("qos").getAsInt()),
        };
        IMqttToken token = mqtt.subscribe(asked, null, null, properties);
        token.waitForCompletion();
        return token.getReasonCodes()[0];
    }

    @Override
    public int publish(JsonObject command) throws Exception {
        IMqttToken token = mqtt.publish(Driver.text(command, "topic"), message(command));
        token.waitForCompletion();
        int[] codes = token.getReasonCodes();
        return codes == null || codes.length == 0 ? 0 : codes[0];
    }

    @Override
    public void disconnect() throws Exception {
        mqtt.disconnect().waitForCompletion();
    }

    @Override
    public int code(Throwable error) {
        int code = error instanceof MqttException ? ((MqttException) error).getReasonCode() : -1;
        return code > 0 && code < 256 ? code : -1;
    }

    @Override
    public void messageArrived(String topic, MqttMessage message) {
        JsonObject told = Driver.message(topic, message.getPayload(), message.getQos(), message.isRetained());
        MqttProperties of = message.getProperties();
        told.addProperty("content_type", of.getContentType());
        told.addProperty("response_topic", of.getResponseTopic());
        told.addProperty("expiry", of.getMessageExpiryInterval());
        if (of.getCorrelationData() != null) {
            told.addProperty("correlation", new String(of.getCorrelationData(), StandardCharsets.UTF_8));
        }
        JsonArray user = new JsonArray();
        for (UserProperty pair : of.getUserProperties()) {
            user.add(Driver.pair(pair.getKey(), pair.getValue()));
        }
        told.add("user", user);
        JsonArray subscriptions = new JsonArray();
        of.getSubscriptionIdentifiers().forEach(subscriptions::add);
        told.add("subscriptions", subscriptions);
        Driver.heard(name, told);
    }

    @Override
    public void disconnected(MqttDisconnectResponse response) { }

    @Override
    public void mqttErrorOccurred(MqttException error) {
        System.err.println(error);
    }

    @Override
    public void deliveryComplete(IMqttToken token) { }

    @Override
    public void connectComplete(boolean reconnect, String uri) { }

    @Override
    public void authPacketArrived(int code, MqttProperties properties) { }
}
