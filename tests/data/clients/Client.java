import java.io.*;
import java.net.*;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.util.concurrent.*;
import java.util.stream.*;

/** A JVM program that knows nothing of the mesh: plain sockets, NIO channels and the HTTP client. */
public class Client {
    public static void main(String[] args) throws Exception {
        var to = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
        var request = "GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".getBytes();
        try (var socket = new Socket()) {
            socket.connect(to, 10_000);
            socket.getOutputStream().write(request);
            say("socket", socket.getRemoteSocketAddress(), body(socket.getInputStream()));
        }
        try (var channel = SocketChannel.open(to)) {
            channel.write(ByteBuffer.wrap(request));
            say("channel", channel.getRemoteAddress(), body(channel.socket().getInputStream()));
        }
        var client = HttpClient.newBuilder().connectTimeout(java.time.Duration.ofSeconds(10)).build();
        var uri = URI.create("http://" + args[0] + ":" + args[1] + "/");
        var calls = IntStream.range(0, 40)
            .mapToObj(i -> client.sendAsync(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString()))
            .collect(Collectors.toList());
        for (CompletableFuture<HttpResponse<String>> call : calls) {
            var answer = call.get(20, TimeUnit.SECONDS);
            say("http", to, answer.statusCode() == 200 ? answer.body() : "status " + answer.statusCode());
        }
    }

    static String body(InputStream in) throws IOException {
        var all = new String(in.readAllBytes());
        return all.substring(all.indexOf("\r\n\r\n") + 4);
    }

    static void say(String how, SocketAddress peer, String body) {
        var text = peer.toString().replaceFirst("^[^/]*/", "");
        System.out.printf("{\"how\": \"%s\", \"peer\": \"%s\", \"body\": \"%s\"}%n", how, text, body);
    }
}
