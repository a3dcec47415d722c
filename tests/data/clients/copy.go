// A proxy as they are written in Go: io.Copy between two sockets, which the runtime does by splice.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	check(err)
	fmt.Println("listens")
	for {
		near, err := listener.Accept()
		check(err)
		go func() {
			defer near.Close()
			far, err := net.Dial("tcp", os.Args[2])
			check(err)
			defer far.Close()
			done := make(chan bool)
			go func() {
				io.Copy(far, near)
				far.(*net.TCPConn).CloseWrite()
				done <- true
			}()
			io.Copy(near, far)
			near.(*net.TCPConn).CloseWrite()
			<-done
		}()
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
