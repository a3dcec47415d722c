// Program peer runs the public Motan Go library (github.com/weibocom/motan-go v1.2.0) as each of the
// parties that Sockmesh stands between or takes the place of:
//
//	peer server  -port N ...   an echo service (service.go)
//	peer client  -to HOST:PORT calls every form of it, asserts the answers, prints them as JSON (client.go)
//	peer agent   -c FILE ...   the library's own agent, with its own flags
//	peer load    -to HOST:PORT callers that count calls and their times (load.go)
//	peer grpc    -port N       a gRPC server that echoes what it is sent, built on the library's gRPC (grpc.go)
//
// Every party says "ready" on its standard output once it serves, and ends with an error on the first
// thing that it did not expect.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	motan "github.com/weibocom/motan-go"
	"github.com/weibocom/motan-go/config"
)

var parties = map[string]func(args []string) error{
	"server": server,
	"client": client,
	"agent":  agent,
	"load":   load,
	"grpc":   grpcServer,
}

func main() {
	if len(os.Args) < 2 || parties[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peer server|client|agent|load|grpc FLAGS")
		os.Exit(2)
	}
	if err := parties[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "peer %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// agent is the original: its flags are the library's own.
func agent(args []string) error {
	os.Args = append(os.Args[:1], args...)
	motan.NewAgent(nil).StartMotanAgent()
	return fmt.Errorf("the agent ended")
}

// where tells how a party finds the other.
type where struct {
	service, group, zookeeper string
}

func (w *where) flags(set *flag.FlagSet) {
	set.StringVar(&w.service, "service", "kit.EchoService", "name of the service")
	set.StringVar(&w.group, "group", "kit-group", "its group")
	set.StringVar(&w.zookeeper, "zookeeper", "", "HOST:PORT of a ZooKeeper that tells where; without it, directly")
}

// registry is the section of the library's configuration for it; to is used when there is no ZooKeeper.
func (w *where) registry(to string) string {
	if w.zookeeper != "" {
		return fmt.Sprintf("  reg: {protocol: zookeeper, address: %q, registrySessionTimeout: 10}\n", w.zookeeper)
	}
	return fmt.Sprintf("  reg: {protocol: direct, address: %q}\n", to)
}

func parse(text string) (*config.Config, error) {
	conf, err := config.NewConfigFromReader(strings.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("the configuration made of the flags: %v\n%s", err, text)
	}
	return conf, nil
}
