package kit;

import com.weibo.api.motan.common.MotanConstants;
import com.weibo.api.motan.config.ProtocolConfig;
import com.weibo.api.motan.config.RefererConfig;
import com.weibo.api.motan.config.RegistryConfig;
import com.weibo.api.motan.config.ServiceConfig;
import com.weibo.api.motan.rpc.RpcContext;
import com.weibo.api.motan.util.MotanSwitcherUtil;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;

/**
 * Motan Java 1.2.6 as one of the parties that Sockmesh stands between:
 *
 * <pre>
 * server --port N [--zookeeper HOST:PORT]     an echo service; says "ready" once it serves
 * client --to HOST:PORT | --zookeeper HOST:PORT [--agents] [--protocol motan]
 *                                             calls every form of it and prints a line of JSON for each
 * </pre>
 *
 * The service is kit.Echo, the group kit-group unless --group says otherwise.
 */
public final class Main {
    public static void main(String[] args) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int i = 1; i < args.length; i++) {
            boolean flag = i + 1 >= args.length || args[i + 1].startsWith("--");
            options.put(args[i].substring(2), flag ? "true" : args[++i]);
        }
        String party = args.length == 0 ? "" : args[0];
        switch (party) {
            case "server":
                server(options);
                return;
            case "client":
                System.exit(new Client(options).run() ? 0 : 1);
                return;
            default:
                System.err.println("usage: server|client OPTIONS");
                System.exit(2);
        }
    }

    private static RegistryConfig registry(Map<String, String> options, String otherwise) {
        RegistryConfig registry = new RegistryConfig();
        registry.setRegProtocol(options.containsKey("zookeeper") ? "zookeeper" : otherwise);
        registry.setAddress(options.getOrDefault("zookeeper", options.getOrDefault("to", "127.0.0.1:0")));
        return registry;
    }

    private static ProtocolConfig protocol(Map<String, String> options) {
        ProtocolConfig protocol = new ProtocolConfig();
        String name = options.getOrDefault("protocol", "motan2");
        protocol.setId(name);
        protocol.setName(name);
        if (name.equals("motan2")) {
            protocol.setSerialization("simple");
        }
        return protocol;
    }

    private static void server(Map<String, String> options) throws Exception {
        ServiceConfig<Echo> service = new ServiceConfig<>();
        service.setInterface(Echo.class);
        service.setRef(new Impl());
        service.setGroup(options.getOrDefault("group", "kit-group"));
        service.setVersion("1.0");
        service.setApplication("kit-java-server");
        service.setModule("kit");
        service.setHost("127.0.0.1");
        service.setRegistry(registry(options, "local"));
        ProtocolConfig protocol = protocol(options);
        service.setProtocol(protocol);
        service.setExport(protocol.getId() + ":" + options.get("port"));
        service.export();
        MotanSwitcherUtil.setSwitcherValue(MotanConstants.REGISTRY_HEARTBEAT_SWITCHER, true);
        System.out.println("ready");
        Thread.currentThread().join();
    }

    /** The service. */
    static final class Impl implements Echo {
        @Override
        public String echoString(String text) {
            return text;
        }

        @Override
        public long echoInt(long n) {
            return n;
        }

        @Override
        public boolean echoBool(boolean b) {
            return b;
        }

        @Override
        public double echoDouble(double d) {
            return d;
        }

        @Override
        public byte[] echoBytes(byte[] bytes) {
            return bytes;
        }

        @Override
        public Map<String, String> echoMap(Map<String, String> map) {
            return map;
        }

        @Override
        public List<String> echoStrings(List<String> list) {
            return list;
        }

        @Override
        public String join(String a, long n, boolean b, byte[] bytes, double d) {
            return a + n + b + Arrays.toString(bytes) + d;
        }

        @Override
        public String noArgs() {
            return "none";
        }

        @Override
        public void nothing(String text) {}

        @Override
        public String broken(String text) {
            throw new IllegalStateException("kit boom");
        }

        @Override
        public long slow(long ms) {
            try {
                Thread.sleep(ms);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            return ms;
        }

        @Override
        public String attachments() {
            Map<String, String> all = new TreeMap<>(RpcContext.getContext().getRequest().getAttachments());
            StringBuilder text = new StringBuilder();
            all.forEach((key, value) -> text.append(key).append('=').append(value).append('\n'));
            return text.toString();
        }
    }

    /** Calls and compares. */
    private static final class Client {
        private final Map<String, String> options;
        private int failed;

        Client(Map<String, String> options) {
            this.options = options;
        }

        interface Step {
            Object run() throws Exception;
        }

        private Echo open(Integer gzip, int timeout) {
            RefererConfig<Echo> referer = new RefererConfig<>();
            referer.setInterface(Echo.class);
            referer.setGroup(options.getOrDefault("group", "kit-group"));
            referer.setVersion("1.0");
            referer.setApplication("kit-java");
            referer.setModule("kit");
            referer.setRequestTimeout(timeout);
            referer.setRetries(0);
            referer.setCheck("false");
            referer.setRegistry(registry(options, "direct"));
            ProtocolConfig protocol = protocol(options);
            if (gzip != null) {
                referer.setMingzSize(gzip);
                referer.setUsegz(true);
            }
            referer.setProtocol(protocol);
            Echo echo = referer.getRef();
            // The first calls of a fresh client may come before its connections are up.
            for (int i = 0; i < 50; i++) {
                try {
                    echo.noArgs();
                    break;
                } catch (Throwable e) {
                    if (options.containsKey("refused") && !chain(e).contains("No available referers")) {
                        break;
                    }
                    try {
                        Thread.sleep(100);
                    } catch (InterruptedException stop) {
                        break;
                    }
                }
            }
            return echo;
        }

        private void report(String name, boolean ok, Object detail) {
            if (!ok) {
                failed++;
            }
            String text = String.valueOf(detail).replace("\\", "\\\\").replace("\"", "'").replaceAll("\\s+", " ");
            String shown = ok ? "" : ",\"detail\":\"" + text.substring(0, Math.min(text.length(), 300)) + "\"";
            System.out.println("{\"case\":\"" + name + "\",\"ok\":" + ok + shown + "}");
        }

        private void same(String name, Object expected, Step step) {
            try {
                Object got = step.run();
                boolean ok = expected instanceof byte[]
                        ? Arrays.equals((byte[]) expected, (byte[]) got) : Objects.equals(expected, got);
                report(name, ok, "expected " + expected + ", got " + got);
            } catch (Throwable e) {
                report(name, false, chain(e));
            }
        }

        private void fails(String name, String text, Step step) {
            try {
                report(name, false, "no exception but " + step.run());
            } catch (Throwable e) {
                report(name, chain(e).contains(text), chain(e));
            }
        }

        private static String chain(Throwable e) {
            StringBuilder text = new StringBuilder();
            for (Throwable cause = e; cause != null && text.length() < 2000; cause = cause.getCause()) {
                text.append(cause).append(" | ");
            }
            return text.toString();
        }

        boolean run() {
            Echo echo = open(null, 5000);
            if (options.containsKey("refused")) {
                fails("refused", options.get("refused"), () -> echo.echoString("hello"));
                return failed == 0;
            }
            same("string", "hello motan 中文", () -> echo.echoString("hello motan 中文"));
            same("null", null, () -> echo.echoString(null));
            for (long n : new long[] {0, -1, 8192, Long.MAX_VALUE, Long.MIN_VALUE}) {
                same("long " + n, n, () -> echo.echoInt(n));
            }
            same("bool", true, () -> echo.echoBool(true));
            same("double", -1.5, () -> echo.echoDouble(-1.5));
            byte[] bytes = {0, 1, 2, (byte) 0xf1, (byte) 0xf1, -1};
            same("bytes", bytes, () -> echo.echoBytes(bytes));
            byte[] large = new byte[1 << 20];
            Arrays.fill(large, (byte) 'x');
            same("a megabyte", large, () -> echo.echoBytes(large));
            Map<String, String> map = new HashMap<>();
            map.put("k1", "v1");
            map.put("中", "");
            same("map", map, () -> echo.echoMap(map));
            same("strings", Arrays.asList("a", "", "中"), () -> new ArrayList<>(echo.echoStrings(Arrays.asList("a", "", "中"))));
            same("several arguments", "a-5true[1, 2]2.5",
                    () -> echo.join("a", -5, true, new byte[] {1, 2}, 2.5));
            same("no arguments", "none", echo::noArgs);
            same("no value", null, () -> {
                echo.nothing("x");
                return null;
            });
            fails("fault in the service", "kit boom", () -> echo.broken("x"));
            String z = String.join("", Collections.nCopies(10000, "z"));
            Echo packing = open(64, 5000);
            same("gzip", z, () -> packing.echoString(z));
            Echo hasty = open(null, 700);
            long start = System.nanoTime();
            fails("time-out", "", () -> hasty.slow(20000));
            report("time-out in time", System.nanoTime() - start < 15_000_000_000L, System.nanoTime() - start);
            same("after it", 5L, () -> hasty.slow(5));
            if (options.containsKey("agents")) {
                added(echo);
            }
            return failed == 0;
        }

        private void added(Echo echo) {
            RpcContext.getContext().setRpcAttachment("kit-own", "kept");
            String seen;
            try {
                seen = "\n" + echo.attachments();
            } catch (Throwable e) {
                report("attachments", false, chain(e));
                return;
            }
            for (String line : new String[] {"kit-own=kept", "host=127.0.0.1", "M_rid=", "x-forwarded-for=127.0.0.1"}) {
                report("attachment " + line, seen.contains("\n" + line), seen);
            }
            byte[] utf8 = seen.getBytes(StandardCharsets.UTF_8);
            report("attachments are text", utf8.length > 0, utf8.length);
        }
    }
}
