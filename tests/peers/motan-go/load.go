package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load calls from many places at once for a number of calls or a time, and prints one line of JSON:
// calls, errors, seconds, calls_per_second, p50_us, p99_us.
func load(args []string) error {
	set := flag.NewFlagSet("load", flag.ExitOnError)
	var at where
	at.flags(set)
	to := set.String("to", "", "HOST:PORT to call")
	callers := set.Int("callers", 1, "callers at once")
	calls := set.Int64("calls", 0, "calls in all; 0 is as many as the time allows")
	seconds := set.Float64("seconds", 5, "for how long, when calls is 0")
	warm := set.Int("warm", 200, "calls before the count begins")
	size := set.Int("bytes", 32, "length of the text that is echoed")
	connections := set.Int("connections", 3, "connections of the library to the endpoint")
	set.Parse(args)
	client, err := open(&at, *to, fmt.Sprintf("requestTimeout: 10000, clientConnection: %d, errorCountThreshold: 0", *connections))
	if err != nil {
		return err
	}
	text := strings.Repeat("m", *size)
	call := func() error {
		var reply string
		if err := client.Call("echoString", []interface{}{text}, &reply); err != nil {
			return err
		}
		if reply != text {
			return fmt.Errorf("%q came back as %q", text, reply)
		}
		return nil
	}
	for i := 0; i < *warm; i++ {
		if err := call(); err != nil {
			return fmt.Errorf("call %d before the count: %v", i, err)
		}
	}
	var begun, failed int64
	var first atomic.Value
	times := make([][]time.Duration, *callers)
	var all sync.WaitGroup
	start := time.Now()
	end := start.Add(time.Duration(*seconds * float64(time.Second)))
	for i := range times {
		all.Add(1)
		go func(mine *[]time.Duration) {
			defer all.Done()
			for {
				if *calls > 0 && atomic.AddInt64(&begun, 1) > *calls || *calls == 0 && time.Now().After(end) {
					return
				}
				before := time.Now()
				if err := call(); err != nil {
					atomic.AddInt64(&failed, 1)
					first.CompareAndSwap(nil, err.Error())
					continue
				}
				*mine = append(*mine, time.Since(before))
			}
		}(&times[i])
	}
	all.Wait()
	took := time.Since(start).Seconds()
	var sorted []time.Duration
	for _, mine := range times {
		sorted = append(sorted, mine...)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	at99 := func(percent int) float64 {
		if len(sorted) == 0 {
			return 0
		}
		return float64(sorted[(len(sorted)-1)*percent/100].Nanoseconds()) / 1000
	}
	line, _ := json.Marshal(map[string]interface{}{
		"calls": len(sorted), "errors": failed, "seconds": took, "calls_per_second": float64(len(sorted)) / took,
		"p50_us": at99(50), "p99_us": at99(99), "first_error": first.Load(),
	})
	fmt.Println(string(line))
	return nil
}
