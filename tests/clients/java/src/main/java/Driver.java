import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;

/** Java's clients as the tests drive them, ../README.md says how: {@code Driver paho} or {@code Driver hivemq}. */
public final class Driver {
    /** A client of a library. Every call returns when it is acknowledged, with the code. */
    interface Client {
        /** Whether there was a session. */
        boolean connect(JsonObject command) throws Exception;

        int subscribe(JsonObject command) throws Exception;

        int publish(JsonObject command) throws Exception;

        void disconnect() throws Exception;

        /** The code that an exception of the library tells, or -1. */
        int code(Throwable error);
    }

    private static final Gson GSON = new Gson();
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    private static final Map<String, Client> CLIENTS = new HashMap<>();

    static synchronized void say(JsonObject line) {
        OUT.println(GSON.toJson(line));
    }

    static void heard(String client, JsonObject message) {
        JsonObject line = new JsonObject();
        line.addProperty("client", client);
        line.add("message", message);
        say(line);
    }

    static JsonObject message(String topic, byte[] payload, int qos, boolean retain) {
        JsonObject message = new JsonObject();
        message.addProperty("topic", topic);
        message.addProperty("payload", new String(payload, StandardCharsets.UTF_8));
        message.addProperty("qos", qos);
        message.addProperty("retain", retain);
        return message;
    }

    static String text(JsonObject from, String name) {
        JsonElement value = from.get(name);
        return value == null ? null : value.getAsString();
    }

    static byte[] bytes(JsonObject from, String name) {
        String text = text(from, name);
        return text == null ? null : text.getBytes(StandardCharsets.UTF_8);
    }

    static JsonArray pair(String name, String value) {
        JsonArray pair = new JsonArray();
        pair.add(name);
        pair.add(value);
        return pair;
    }

    /** Trust in the authority in this file alone. */
    static TrustManagerFactory trust(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream in = new FileInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        return factory;
    }

    static SSLSocketFactory sockets(String ca) throws Exception {
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust(ca).getTrustManagers(), null);
        return context.getSocketFactory();
    }

    /** Paho's names of the schemes. */
    static String paho(String url) {
        URI uri = URI.create(url);
        Map<String, String> schemes = new TreeMap<>(Map.of("mqtt", "tcp", "mqtts", "ssl", "ws", "ws", "wss", "wss"));
        return schemes.get(uri.getScheme()) + url.substring(uri.getScheme().length());
    }

    private static Client make(String library, JsonObject command) {
        boolean five = text(command, "version").equals("5");
        if (library.equals("paho")) {
            return five ? new Paho5() : new Paho3();
        }
        return five ? new HiveMq5() : new HiveMq3();
    }

    private static JsonObject run(String library, JsonObject command) {
        JsonObject answer = new JsonObject();
        answer.add("id", command.get("id"));
        String name = text(command, "client");
        String what = text(command, "do");
        try {
            int code = 0;
            if (what.equals("connect")) {
                // A client that comes back to its session is the one that left it.
                if (command.get("clean").getAsBoolean() || !CLIENTS.containsKey(name)) {
                    CLIENTS.put(name, make(library, command));
                }
                answer.addProperty("session_present", CLIENTS.get(name).connect(command));
            } else if (what.equals("subscribe")) {
                code = CLIENTS.get(name).subscribe(command);
            } else if (what.equals("publish")) {
                code = CLIENTS.get(name).publish(command);
            } else if (what.equals("disconnect")) {
                CLIENTS.get(name).disconnect();
            } else {
                throw new IllegalArgumentException(what);
            }
            answer.addProperty("code", code);
        } catch (Exception error) {
            Throwable cause = error instanceof ExecutionException ? error.getCause() : error;
            int code = CLIENTS.get(name).code(cause);
            if (code >= 0) {
                answer.addProperty("code", code);
            }
            answer.addProperty("error", cause.toString());
        }
        return answer;
    }

    /** Runs. */
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            say(run(args[0], JsonParser.parseString(line).getAsJsonObject()));
        }
        // Whatever threads the libraries have.
        System.exit(0);
    }
}
