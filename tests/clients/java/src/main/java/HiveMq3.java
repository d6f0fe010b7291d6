import com.google.gson.JsonObject;
import com.hivemq.client.mqtt.MqttGlobalPublishFilter;
import com.hivemq.client.mqtt.datatypes.MqttQos;
import com.hivemq.client.mqtt.mqtt3.Mqtt3AsyncClient;
import com.hivemq.client.mqtt.mqtt3.exceptions.Mqtt3ConnAckException;
import com.hivemq.client.mqtt.mqtt3.exceptions.Mqtt3SubAckException;
import com.hivemq.client.mqtt.mqtt3.message.connect.Mqtt3Connect;
import com.hivemq.client.mqtt.mqtt3.message.connect.Mqtt3ConnectBuilder;
import com.hivemq.client.mqtt.mqtt3.message.publish.Mqtt3Publish;
import java.nio.charset.StandardCharsets;

/** HiveMQ's client, MQTT 3.1.1. */
final class HiveMq3 implements Driver.Client {
    private Mqtt3AsyncClient mqtt;

    private static Mqtt3Publish message(JsonObject message) {
        return Mqtt3Publish.builder()
            .topic(Driver.text(message, "topic"))
            .payload(Driver.bytes(message, "payload"))
            .qos(MqttQos.fromCode(message.get("qos").getAsInt()))
            .retain(message.get("retain").getAsBoolean())
            .build();
    }

    @Override
    public boolean connect(JsonObject command) throws Exception {
        if (mqtt == null) {
            String name = Driver.text(command, "client");
            mqtt = HiveMq.builder(command).useMqttVersion3().buildAsync();
            mqtt.publishes(MqttGlobalPublishFilter.ALL, message -> Driver.heard(name, Driver.message(
                message.getTopic().toString(), message.getPayloadAsBytes(), message.getQos().getCode(),
                message.isRetain())));
        }
        Mqtt3ConnectBuilder connect = Mqtt3Connect.builder().cleanSession(command.get("clean").getAsBoolean());
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
            .qos(MqttQos.fromCode(command.get("qos").getAsInt())).send().get().getReturnCodes().get(0).getCode();
    }

    @Override
    public int publish(JsonObject command) throws Exception {
        mqtt.publish(message(command)).get();
        return 0;
    }

    @Override
    public void disconnect() throws Exception {
        mqtt.disconnect().get();
    }

    @Override
    public int code(Throwable error) {
        if (error instanceof Mqtt3ConnAckException) {
            return ((Mqtt3ConnAckException) error).getMqttMessage().getReturnCode().getCode();
        }
        if (error instanceof Mqtt3SubAckException) {
            return ((Mqtt3SubAckException) error).getMqttMessage().getReturnCodes().get(0).getCode();
        }
        return -1;
    }
}
