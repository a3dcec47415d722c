package main

import (
	"flag"
	"fmt"
	"strings"
	"time"

	motan "github.com/weibocom/motan-go"
	"github.com/weibocom/motan-go/core"
)

// Echo is the service: each method answers what it was sent.
type Echo struct{}

func (*Echo) EchoString(s string) string                         { return s }
func (*Echo) EchoInt(n int64) int64                              { return n }
func (*Echo) EchoInt32(n int32) int32                            { return n }
func (*Echo) EchoBool(b bool) bool                               { return b }
func (*Echo) EchoDouble(f float64) float64                       { return f }
func (*Echo) EchoBytes(b []byte) []byte                          { return b }
func (*Echo) EchoStrings(s []string) []string                    { return s }
func (*Echo) EchoMap(m map[string]string) map[string]string      { return m }
func (*Echo) Join(a string, n int64, b bool, more []byte) string { return fmt.Sprint(a, n, b, more) }
func (*Echo) NoArgs() string                                     { return "none" }
func (*Echo) Nothing(string)                                     {}

// Slow answers after so many milliseconds.
func (*Echo) Slow(ms int64) int64 {
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return ms
}

// Broken fails as a program with a fault does.
func (*Echo) Broken(string) string { panic("a fault in the service") }

func server(args []string) error {
	set := flag.NewFlagSet("server", flag.ExitOnError)
	var at where
	at.flags(set)
	port := set.Int("port", 0, "port to serve at")
	gzip := set.Int("gzip", 0, "answers longer than this are compressed; 0 is never")
	set.Parse(args)
	conf, err := parse(fmt.Sprintf(`motan-server: {log_dir: stdout, application: kit-server}
motan-registry:
%smotan-service:
  kit:
    {path: %q, group: %q, registry: reg, ref: kit, serialization: simple, export: "motan2:%d", host: 127.0.0.1,
     filter: kit, mingzSize: %d, nodeType: service, version: "1.0"}
`, at.registry("127.0.0.1:1"), at.service, at.group, *port, *gzip))
	if err != nil {
		return err
	}
	context := motan.NewMotanServerContextFromConfig(conf)
	if err := context.RegisterService(&Echo{}, "kit"); err != nil {
		return err
	}
	extensions := motan.GetDefaultExtFactory()
	extensions.RegistExtFilter("kit", func() core.Filter { return &kit{} })
	context.Start(extensions)
	context.ServicesAvailable()
	fmt.Println("ready")
	select {}
}

// kit answers the two methods that the library lets no service write: one that throws as a user's code
// does, and one that tells what came along with the call.
type kit struct{ next core.EndPointFilter }

func (*kit) GetIndex() int                          { return 50 }
func (*kit) GetName() string                        { return "kit" }
func (*kit) NewFilter(*core.URL) core.Filter        { return &kit{} }
func (*kit) GetType() int32                         { return core.EndPointFilterType }
func (*kit) GetRuntimeInfo() map[string]interface{} { return map[string]interface{}{} }
func (k *kit) HasNext() bool                        { return k.next != nil }
func (k *kit) SetNext(next core.EndPointFilter)     { k.next = next }
func (k *kit) GetNext() core.EndPointFilter         { return k.next }

func (k *kit) Filter(caller core.Caller, request core.Request) core.Response {
	switch request.GetMethod() {
	case "throwBiz":
		thrown := &core.Exception{ErrCode: 30412, ErrMsg: `kit biz "quoted" 中文`, ErrType: core.BizException}
		return core.BuildExceptionResponse(request.GetRequestID(), thrown)
	case "attachments":
		var lines []string
		request.GetAttachments().Range(func(key, value string) bool {
			lines = append(lines, key+"="+value)
			return true
		})
		return &core.MotanResponse{RequestID: request.GetRequestID(), Value: strings.Join(lines, "\n")}
	}
	return k.next.Filter(caller, request)
}
