import com.google.gson.JsonObject;
import com.hivemq.client.mqtt.MqttClient;
import com.hivemq.client.mqtt.MqttClientBuilder;
import com.hivemq.client.mqtt.MqttClientSslConfig;
import com.hivemq.client.mqtt.MqttWebSocketConfig;
import java.net.URI;

/** What both of HiveMQ's clients begin with. */
final class HiveMq {
    private HiveMq() { }

    static MqttClientBuilder builder(JsonObject command) throws Exception {
        URI url = URI.create(Driver.text(command, "url"));
        MqttClientBuilder made = MqttClient.builder()
            .identifier(Driver.text(command, "client"))
            .serverHost(url.getHost())
            .serverPort(url.getPort());
        if (command.has("ca")) {
            made = made.sslConfig(
                MqttClientSslConfig.builder().trustManagerFactory(Driver.trust(Driver.text(command, "ca"))).build());
        }
        if (url.getScheme().startsWith("ws")) {
            made = made.webSocketConfig(MqttWebSocketConfig.builder().serverPath(url.getPath()).build());
        }
        return made;
    }
}
