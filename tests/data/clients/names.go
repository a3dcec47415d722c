// Looks names up with Go's own resolver and prints what it found, one line for each argument.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		if name[0] == '_' {
			_, records, err := resolver.LookupSRV(ctx, "", "", name)
			if err != nil {
				fmt.Println(name, "failed:", err)
				os.Exit(1)
			}
			for _, r := range records {
				fmt.Println(name, r.Target, r.Port)
			}
			continue
		}
		found, err := resolver.LookupHost(ctx, name)
		if dns, ok := err.(*net.DNSError); ok && dns.IsNotFound {
			fmt.Println(name, "not found")
			continue
		}
		if err != nil {
			fmt.Println(name, "failed:", err)
			os.Exit(1)
		}
		sort.Strings(found)
		if len(found) > 3 {
			fmt.Println(name, len(found))
			continue
		}
		fmt.Println(name, found)
	}
}
