import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.util.zip.CRC32;

/**
 * Both ends of streams over selectors, as Netty does it. `serve HOST PORT` says back what it is told; `talk HOST PORT
 * BYTES COUNT` sends other bytes on each of COUNT connections, as long as the other end takes them, and checks what
 * comes back.
 */
public class Nio {
    public static void main(String[] args) throws Exception {
        var at = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
        if (args[0].equals("serve")) {
            serve(at);
        } else {
            talk(at, Long.parseLong(args[3]), Integer.parseInt(args[4]));
        }
    }

    static void serve(InetSocketAddress at) throws Exception {
        var selector = Selector.open();
        var listener = ServerSocketChannel.open();
        listener.bind(at, 512);
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (var key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    var channel = listener.accept();
                    if (channel != null) {
                        channel.configureBlocking(false);
                        channel.register(selector, SelectionKey.OP_READ, ByteBuffer.allocateDirect(1 << 16));
                    }
                    continue;
                }
                try {
                    echo(key);
                } catch (java.io.IOException e) {
                    key.channel().close();
                }
            }
            selector.selectedKeys().clear();
        }
    }

    static void echo(SelectionKey key) throws Exception {
        var channel = (SocketChannel) key.channel();
        var buffer = (ByteBuffer) key.attachment();
        if (key.isReadable() && channel.read(buffer) < 0) {
            channel.close();
            return;
        }
        buffer.flip();
        channel.write(buffer);
        buffer.compact();
        key.interestOps((buffer.hasRemaining() ? SelectionKey.OP_READ : 0)
            | (buffer.position() > 0 ? SelectionKey.OP_WRITE : 0));
    }

    /** What one connection has sent and got so far; its bytes are those of a linear congruence. */
    static class Stream {
        final long total;
        long sent, got;
        int seed;
        final CRC32 out = new CRC32(), in = new CRC32();
        final ByteBuffer write = ByteBuffer.allocateDirect(1 << 17).limit(0), read = ByteBuffer.allocateDirect(1 << 16);

        Stream(int seed, long total) {
            this.seed = seed;
            this.total = total;
        }

        void fill() {
            write.clear();
            int n = (int) Math.min(total - sent, 1 + (seed >>> 1) % write.capacity());
            for (int i = 0; i < n; i++) {
                seed = seed * 1103515245 + 12345;
                write.put((byte) (seed >>> 16));
            }
            write.flip();
            out.update(write.duplicate());
            sent += n;
        }
    }

    static void talk(InetSocketAddress to, long bytes, int count) throws Exception {
        var selector = Selector.open();
        for (int i = 0; i < count; i++) {
            var channel = SocketChannel.open();
            channel.configureBlocking(false);
            channel.connect(to);
            channel.register(selector, SelectionKey.OP_CONNECT, new Stream(i + 1, bytes));
        }
        long end = System.nanoTime() + 40_000_000_000L;
        for (int open = count; open > 0;) {
            if (selector.select(1000) == 0 && System.nanoTime() > end) {
                throw new IllegalStateException("hangs with " + open + " open");
            }
            for (var key : selector.selectedKeys()) {
                var channel = (SocketChannel) key.channel();
                var stream = (Stream) key.attachment();
                if (key.isConnectable()) {
                    channel.finishConnect();
                    key.interestOps(SelectionKey.OP_READ | SelectionKey.OP_WRITE);
                    continue;
                }
                if (key.isWritable()) {
                    if (!stream.write.hasRemaining()) {
                        stream.fill();
                    }
                    channel.write(stream.write);
                    if (stream.sent == stream.total && !stream.write.hasRemaining()) {
                        key.interestOps(SelectionKey.OP_READ);
                    }
                }
                if (key.isReadable()) {
                    stream.read.clear();
                    int n = channel.read(stream.read);
                    if (n < 0) {
                        throw new IllegalStateException("ended after " + stream.got + " of " + stream.total);
                    }
                    stream.read.flip();
                    stream.in.update(stream.read);
                    stream.got += n;
                    if (stream.got == stream.total) {
                        if (stream.in.getValue() != stream.out.getValue()) {
                            throw new IllegalStateException("other bytes came back");
                        }
                        channel.close();
                        open--;
                    }
                }
            }
            selector.selectedKeys().clear();
        }
        System.out.println("whole");
    }
}
