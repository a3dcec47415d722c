// A Go program that knows nothing of the mesh: net/http, many calls at once, and io.Copy between sockets.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"time"
)

func main() {
	url := os.Args[1]
	client := &http.Client{Timeout: 20 * time.Second}
	var wait sync.WaitGroup
	var out sync.Mutex
	for i := 0; i < 8; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := 0; i < 25; i++ {
				peer, body := call(client, url)
				line, _ := json.Marshal(map[string]string{"peer": peer, "body": body})
				out.Lock()
				fmt.Println(string(line))
				out.Unlock()
			}
		}()
	}
	wait.Wait()
}

func call(client *http.Client, url string) (peer, body string) {
	request, err := http.NewRequest("GET", url, nil)
	check(err)
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { peer = info.Conn.RemoteAddr().String() }}
	answer, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	check(err)
	defer answer.Body.Close()
	bytes, err := io.ReadAll(answer.Body)
	check(err)
	return peer, string(bytes)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
