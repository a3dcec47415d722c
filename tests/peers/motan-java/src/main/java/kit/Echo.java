package kit;

import java.util.List;
import java.util.Map;

/** What the server provides: each method answers what it was sent. */
public interface Echo {
    String echoString(String text);

    long echoInt(long n);

    boolean echoBool(boolean b);

    double echoDouble(double d);

    byte[] echoBytes(byte[] bytes);

    Map<String, String> echoMap(Map<String, String> map);

    List<String> echoStrings(List<String> list);

    String join(String a, long n, boolean b, byte[] bytes, double d);

    String noArgs();

    void nothing(String text);

    /** Throws what a fault in a service throws. */
    String broken(String text);

    /** Answers after so many milliseconds. */
    long slow(long ms);

    /** What came along with the call, a line for each. */
    String attachments();
}
