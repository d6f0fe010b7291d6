import com.google.gson.JsonObject;
import org.eclipse.paho.client.mqttv3.IMqttDeliveryToken;
import org.eclipse.paho.client.mqttv3.IMqttToken;
import org.eclipse.paho.client.mqttv3.MqttAsyncClient;
import org.eclipse.paho.client.mqttv3.MqttCallback;
import org.eclipse.paho.client.mqttv3.MqttConnectOptions;
import org.eclipse.paho.client.mqttv3.MqttException;
import org.eclipse.paho.client.mqttv3.MqttMessage;
import org.eclipse.paho.client.mqttv3.persist.MemoryPersistence;

/** Eclipse Paho, MQTT 3.1 and 3.1.1. */
final class Paho3 implements Driver.Client, MqttCallback {
    private String name;
    private MqttAsyncClient mqtt;

    @Override
    public boolean connect(JsonObject command) throws Exception {
        name = Driver.text(command, "client");
        if (mqtt == null) {
            mqtt = new MqttAsyncClient(Driver.paho(Driver.text(command, "url")), name, new MemoryPersistence());
            mqtt.setCallback(this);
        }
        MqttConnectOptions options = new MqttConnectOptions();
        options.setMqttVersion(Driver.text(command, "version").equals("3.1")
            ? MqttConnectOptions.MQTT_VERSION_3_1 : MqttConnectOptions.MQTT_VERSION_3_1_1);
        options.setCleanSession(command.get("clean").getAsBoolean());
        // A publish is said to be acknowledged before it is taken off the count of those in flight, by another thread:
        // ten in a row, one at a time, can be refused as too many.
        options.setMaxInflight(1000);
        if (command.has("ca")) {
            options.setSocketFactory(Driver.sockets(Driver.text(command, "ca")));
        }
        if (command.has("username")) {
            options.setUserName(Driver.text(command, "username"));
            options.setPassword(Driver.text(command, "password").toCharArray());
        }
        if (command.has("will")) {
            JsonObject will = command.getAsJsonObject("will");
            options.setWill(Driver.text(will, "topic"), Driver.bytes(will, "payload"), will.get("qos").getAsInt(),
                will.get("retain").getAsBoolean());
        }
        IMqttToken token = mqtt.connect(options);
        token.waitForCompletion();
        return token.getSessionPresent();
    }

    @Override
    public int subscribe(JsonObject command) throws Exception {
        IMqttToken token = mqtt.subscribe(Driver.text(command, "filter"), command.get("qos").getAsInt());
        token.waitForCompletion();
        return token.getGrantedQos()[0];
    }

    @Override
    public int publish(JsonObject command) throws Exception {
        mqtt.publish(Driver.text(command, "topic"), Driver.bytes(command, "payload"), command.get("qos").getAsInt(),
            command.get("retain").getAsBoolean()).waitForCompletion();
        return 0;
    }

    @Override
    public void disconnect() throws Exception {
        mqtt.disconnect().waitForCompletion();
    }

    @Override
    public int code(Throwable error) {
        // Beyond a byte are the library's own.
        int code = error instanceof MqttException ? ((MqttException) error).getReasonCode() : -1;
        return code > 0 && code < 256 ? code : -1;
    }

    @Override
    public void messageArrived(String topic, MqttMessage message) {
        Driver.heard(name, Driver.message(topic, message.getPayload(), message.getQos(), message.isRetained()));
    }

    @Override
    public void connectionLost(Throwable cause) { }

    @Override
    public void deliveryComplete(IMqttDeliveryToken token) { }
}
