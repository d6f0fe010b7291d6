import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.hivemq.client.mqtt.MqttGlobalPublishFilter;
import com.hivemq.client.mqtt.datatypes.MqttQos;
import com.hivemq.client.mqtt.mqtt5.Mqtt5AsyncClient;
import com.hivemq.client.mqtt.mqtt5.datatypes.Mqtt5UserProperties;
import com.hivemq.client.mqtt.mqtt5.datatypes.Mqtt5UserPropertiesBuilder;
import com.hivemq.client.mqtt.mqtt5.exceptions.Mqtt5ConnAckException;
import com.hivemq.client.mqtt.mqtt5.exceptions.Mqtt5PubAckException;
import com.hivemq.client.mqtt.mqtt5.exceptions.Mqtt5PubRecException;
import com.hivemq.client.mqtt.mqtt5.exceptions.Mqtt5SubAckException;
import com.hivemq.client.mqtt.mqtt5.message.connect.Mqtt5Connect;
import com.hivemq.client.mqtt.mqtt5.message.connect.Mqtt5ConnectBuilder;
import com.hivemq.client.mqtt.mqtt5.message.publish.Mqtt5Publish;
import com.hivemq.client.mqtt.mqtt5.message.publish.Mqtt5PublishBuilder;
import com.hivemq.client.mqtt.mqtt5.message.publish.Mqtt5PublishResult;
import java.nio.charset.StandardCharsets;

/** HiveMQ's client, MQTT 5. */
final class HiveMq5 implements Driver.Client {
    private Mqtt5AsyncClient mqtt;

    private static Mqtt5Publish message(JsonObject message) {
        Mqtt5UserPropertiesBuilder user = Mqtt5UserProperties.builder();
        if (message.has("user")) {
            for (JsonElement pair : message.getAsJsonArray("user")) {
                JsonArray both = pair.getAsJsonArray();
                user = user.add(both.get(0).getAsString(), both.get(1).getAsString());
            }
        }
        Mqtt5PublishBuilder.Complete made = Mqtt5Publish.builder()
            .topic(Driver.text(message, "topic"))
            .payload(Driver.bytes(message, "payload"))
            .qos(MqttQos.fromCode(message.get("qos").getAsInt()))
            .retain(message.get("retain").getAsBoolean())
            .contentType(Driver.text(message, "content_type"))
            .responseTopic(Driver.text(message, "response_topic"))
            .correlationData(Driver.bytes(message, "correlation"))
            .userProperties(user.build());
        if (message.has("expiry")) {
            made = made.messageExpiryInterval(message.get("expiry").getAsLong());
        }
        return made.build();
    }

    private static JsonObject told(Mqtt5Publish message) {
        JsonObject told = Driver.message(message.getTopic().toString(), message.getPayloadAsBytes(),
            message.getQos().getCode(), message.isRetain());
        message.getContentType().ifPresent(value -> told.addProperty("content_type", value.toString()));
        message.getResponseTopic().ifPresent(value -> told.addProperty("response_topic", value.toString()));
        message.getCorrelationData().ifPresent(value ->
            told.addProperty("correlation", StandardCharsets.UTF_8.decode(value).toString()));
        message.getMessageExpiryInterval().ifPresent(value -> told.addProperty("expiry", value));
        JsonArray user = new JsonArray();
        message.getUserProperties().asList().forEach(pair ->
            user.add(Driver.pair(pair.getName().toString(), pair.getValue().toString())));
        told.add("user", user);
        return told;
    }

    @Override
    public boolean connect(JsonObject command) throws Exception {
        if (mqtt == null) {
            String name = Driver.text(command, "client");
            mqtt = HiveMq.builder(command).useMqttVersion5().buildAsync();
            mqtt.publishes(MqttGlobalPublishFilter.ALL, message -> Driver.heard(name, told(message)));
        }
        Mqtt5ConnectBuilder connect = Mqtt5Connect.builder()
            .cleanStart(command.get("clean").getAsBoolean())
            .sessionExpiryInterval(command.has("expiry") ? command.get("expiry").getAsLong() : 0);
        if (command.has("alias_max")) {
            connect = connect.restrictions().topicAliasMaximum(command.get("alias_max").getAsInt()).applyRestrictions();
        }
        if (command.has("username")) {
            connect = connect.simpleAuth().username(Driver.text(command, "username"))
                .password(Driver.text(command, "password").getBytes(StandardCharsets.UTF_8)).applySimpleAuth();
        }
        if (command.has("will")) {
            connect = connect.willPublish(message(command.getAsJsonObject("will")));
        }
        return mqtt.connect(connect.build()).get().isSessionPresent();
    }

    @Override
    public int subscribe(JsonObject command) throws Exception {
        return mqtt.subscribeWith().topicFilter(Driver.text(command, "filter"))
            .qos(MqttQos.fromCode(command.get("qos").getAsInt())).send().get().getReasonCodes().get(0).getCode();
    }

    @Override
    public int publish(JsonObject command) throws Exception {
        Mqtt5PublishResult result = mqtt.publish(message(command)).get();
        return result.getError().map(this::code).orElse(0);
    }

    @Override
    public void disconnect() throws Exception {
        mqtt.disconnect().get();
    }

    @Override
    public int code(Throwable error) {
        if (error instanceof Mqtt5ConnAckException) {
            return ((Mqtt5ConnAckException) error).getMqttMessage().getReasonCode().getCode();
        }
        if (error instanceof Mqtt5SubAckException) {
            return ((Mqtt5SubAckException) error).getMqttMessage().getReasonCodes().get(0).getCode();
        }
        if (error instanceof Mqtt5PubAckException) {
            return ((Mqtt5PubAckException) error).getMqttMessage().getReasonCode().getCode();
        }
        if (error instanceof Mqtt5PubRecException) {
            return ((Mqtt5PubRecException) error).getMqttMessage().getReasonCode().getCode();
        }
        return -1;
    }
}
