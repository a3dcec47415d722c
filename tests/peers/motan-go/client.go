package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	motan "github.com/weibocom/motan-go"
	"github.com/weibocom/motan-go/core"
	"github.com/weibocom/motan-go/endpoint"
	"github.com/weibocom/motan-go/protocol"
)

// result is one line of what the client prints.
type result struct {
	Case   string `json:"case"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// open makes a client of the library. more are further keys of its reference.
func open(at *where, to, more string) (*motan.Client, error) {
	conf, err := parse(fmt.Sprintf(`motan-client: {log_dir: stdout, application: kit-client}
motan-registry:
%smotan-refer:
  kit: {path: %q, group: %q, protocol: motan2, registry: reg, serialization: simple, version: "1.0",
        asyncInitConnection: false, %s}
`, at.registry(to), at.service, at.group, more))
	if err != nil {
		return nil, err
	}
	context := motan.NewClientContextFromConfig(conf)
	context.Start(nil)
	return context.GetClient("kit"), nil
}

func client(args []string) error {
	set := flag.NewFlagSet("client", flag.ExitOnError)
	var at where
	at.flags(set)
	to := set.String("to", "", "HOST:PORT to call: an agent, or the service itself")
	agents := set.Bool("agents", false, "there are agents on the way: look for what they add")
	set.Parse(args)
	plain, err := open(&at, *to, "requestTimeout: 5000")
	if err != nil {
		return err
	}
	packing, err := open(&at, *to, "requestTimeout: 5000, mingzSize: 64")
	if err != nil {
		return err
	}
	kit := &caller{at: at, to: *to, agents: *agents, plain: plain, packing: packing}
	kit.run()
	failed := 0
	for _, r := range kit.results {
		if !r.OK {
			failed++
		}
		line, _ := json.Marshal(r)
		fmt.Println(string(line))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d cases failed", failed, len(kit.results))
	}
	return nil
}

type caller struct {
	at             where
	to             string
	agents         bool
	plain, packing *motan.Client
	results        []result
}

func (c *caller) check(name string, err error, ok bool, detail string) {
	if err != nil {
		ok, detail = false, err.Error()
	}
	if ok {
		detail = ""
	}
	c.results = append(c.results, result{name, ok, detail})
}

// echo calls a method with one value and wants the same back.
func (c *caller) echo(with *motan.Client, name, method string, value interface{}) {
	reply := reflect.New(reflect.TypeOf(value))
	err := with.Call(method, []interface{}{value}, reply.Interface())
	got := reply.Elem().Interface()
	text := fmt.Sprintf("sent %T %.60v, got %.60v", value, fmt.Sprint(value), fmt.Sprint(got))
	c.check(name, err, reflect.DeepEqual(value, got), text)
}

// raw is a call whose whole answer is looked at. The library hands out no other way to it than a
// cluster of its own.
func (c *caller) raw(method string, args []interface{}, reply interface{}, attach map[string]string) core.Response {
	mesh := motan.NewMeshClient()
	mesh.SetAddress(c.to)
	mesh.SetApplication("kit-mesh")
	mesh.SetRequestTimeout(3 * time.Second)
	mesh.Initialize()
	defer mesh.Destroy()
	request := mesh.BuildRequestWithGroup(c.at.service, method, args, c.at.group)
	for key, value := range attach {
		request.SetAttachment(key, value)
	}
	return mesh.BaseCall(request, reply)
}

func (c *caller) run() {
	c.echo(c.plain, "string", "echoString", "hello motan 中文")
	c.echo(c.plain, "empty string", "echoString", "")
	for _, n := range []int64{0, 1, -1, 8192, 1 << 62, -(1 << 63)} {
		c.echo(c.plain, fmt.Sprintf("int64 %d", n), "echoInt", n)
	}
	c.echo(c.plain, "int32", "echoInt32", int32(-7))
	c.echo(c.plain, "bool", "echoBool", true)
	c.echo(c.plain, "double", "echoDouble", -1.5)
	c.echo(c.plain, "bytes", "echoBytes", []byte{0, 1, 2, 0xf1, 0xf1, 0xff})
	c.echo(c.plain, "a megabyte", "echoBytes", []byte(strings.Repeat("abcdefgh", 1<<17)))
	c.echo(c.plain, "strings", "echoStrings", []string{"a", "", "中"})
	c.echo(c.plain, "map", "echoMap", map[string]string{"k1": "v1", "": "empty-key", "k3": ""})
	c.echo(c.packing, "gzip", "echoString", strings.Repeat("z", 10000))

	var text string
	err := c.plain.Call("join", []interface{}{"a", int64(-5), true, []byte{1, 2}}, &text)
	c.check("several arguments", err, text == fmt.Sprint("a", int64(-5), true, []byte{1, 2}), text)
	text = ""
	err = c.plain.Call("noArgs", nil, &text)
	c.check("no arguments", err, text == "none", text)
	text = "untouched"
	err = c.plain.Call("nothing", []interface{}{"x"}, &text)
	c.check("no value", err, text == "untouched" || text == "", text)

	c.exceptions()
	c.oneWay()
	c.heartbeat()
	c.manyAtOnce()
	if c.agents {
		c.added()
	}
}

func (c *caller) exceptions() {
	thrown := func(name string, response core.Response, code, kind int, text string) {
		e := response.GetException()
		ok := e != nil && e.ErrCode == code && e.ErrType == kind && strings.HasPrefix(e.ErrMsg, text)
		c.check(name, nil, ok, fmt.Sprintf("%+v", e))
	}
	thrown("business exception", c.raw("throwBiz", nil, nil, nil), 30412, core.BizException, `kit biz "quoted" 中文`)
	thrown("fault in the service", c.raw("broken", []interface{}{"x"}, nil, nil), 500, core.ServiceException, "provider call panic")
	thrown("unknown method", c.raw("noSuchMethod", nil, nil, nil), 500, core.ServiceException, "method noSuchMethod is not found")
	start := time.Now()
	response := c.raw("slow", []interface{}{int64(20000)}, nil, nil)
	thrown("time-out", response, 400, core.ServiceException, "channel call error:timeout err: receive request timeout")
	took := time.Since(start)
	c.check("time-out in time", nil, took < 10*time.Second, took.String())
}

func (c *caller) oneWay() {
	request := c.plain.BuildRequest("echoString", []interface{}{"one way"})
	request.GetRPCContext(true).Oneway = true
	var text string
	// The library waits for the answer of a one-way call too.
	err := c.plain.BaseCall(request, &text)
	c.check("one-way", err, text == "one way", text)
}

// heartbeat sends both that the library knows and wants the answer that its own server gives.
func (c *caller) heartbeat() {
	if c.to == "" {
		return
	}
	conn, err := net.Dial("tcp", c.to)
	if err != nil {
		c.check("heartbeat", err, false, "")
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = conn.Write(protocol.BuildHeartbeat(endpoint.GenerateRequestID(), protocol.Req).Encode().Bytes()); err != nil {
		c.check("heartbeat", err, false, "")
		return
	}
	answer := make([]byte, 21)
	n, err := conn.Read(answer)
	c.check("heartbeat", err, n == 21 && answer[2] == 0x13, fmt.Sprintf("%x", answer[:n]))
}

func (c *caller) manyAtOnce() {
	type done struct {
		want, got string
		err       error
	}
	answers := make(chan done)
	const callers, calls = 32, 20
	for i := 0; i < callers; i++ {
		go func(i int) {
			for j := 0; j < calls; j++ {
				want, got := fmt.Sprintf("caller %d call %d", i, j), ""
				err := c.plain.Call("echoString", []interface{}{want}, &got)
				answers <- done{want, got, err}
			}
		}(i)
	}
	for i := 0; i < callers*calls; i++ {
		if d := <-answers; d.err != nil || d.want != d.got {
			c.check("many at once", d.err, false, d.want+" came back as "+d.got)
			go func() {
				for range answers {
				}
			}()
			return
		}
	}
	c.check("many at once", nil, true, "")
}

// added looks at what the agents on the way put beside a call and its answer.
func (c *caller) added() {
	var text string
	response := c.raw("attachments", nil, &text, map[string]string{"kit-own": "kept", "kit-Case": "Kept"})
	if e := response.GetException(); e != nil {
		c.check("attachments", fmt.Errorf("%+v", e), false, "")
		return
	}
	seen := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			seen[key] = value
		}
	}
	for key, want := range map[string]string{
		"kit-own": "kept", "kit-Case": "Kept", "M_g": c.at.group, "M_s": "kit-mesh", "M_p": c.at.service,
		"host": "127.0.0.1", "x-forwarded-for": "127.0.0.1",
	} {
		c.check("attachment "+key, nil, seen[key] == want, seen[key])
	}
	c.check("attachment M_rid", nil, seen["M_rid"] != "", text)
	from := response.GetAttachment("x-forwarded-for")
	_, _, err := net.SplitHostPort(from)
	c.check("answer says who answered", err, true, from)
	if err != nil {
		fmt.Fprintln(os.Stderr, "x-forwarded-for of the answer:", from)
	}
}
