package main

import (
	"flag"
	"fmt"
	"net"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// bare hands message bytes through as they are.
type bare struct{}

func (bare) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (bare) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (bare) String() string { return "bare" }

// grpcServer answers every method of every service: Echo the message, Metadata what came along as text,
// Fail a status, Slow after a second or when the caller gave up, Leave after telling the caller to use
// another connection.
func grpcServer(args []string) error {
	set := flag.NewFlagSet("grpc", flag.ExitOnError)
	port := set.Int("port", 0, "port to serve at")
	set.Parse(args)
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.CustomCodec(bare{}), grpc.UnknownServiceHandler(answer),
		grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	fmt.Println("ready")
	return server.Serve(listener)
}

func answer(_ interface{}, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	switch path[strings.LastIndex(path, "/")+1:] {
	case "Echo":
	case "Metadata":
		var lines []string
		md, _ := metadata.FromIncomingContext(stream.Context())
		for key, values := range md {
			lines = append(lines, key+"="+strings.Join(values, ","))
		}
		_, bounded := stream.Context().Deadline()
		lines = append(lines, fmt.Sprintf("path=%s", path), fmt.Sprintf("deadline=%v", bounded))
		sort.Strings(lines)
		message = []byte(strings.Join(lines, "\n"))
	case "Fail":
		return status.Error(codes.InvalidArgument, "kit fail: 中文 100%")
	case "Slow":
		select {
		case <-stream.Context().Done():
			return status.Error(codes.Canceled, "the caller gave up")
		case <-time.After(time.Second):
		}
	default:
		return status.Errorf(codes.Unimplemented, "unknown method %s", path)
	}
	return stream.SendMsg(&message)
}
