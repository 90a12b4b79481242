// A relay as one writes it in Go: `relay far SOCKET` from TCP, `relay near SOCKET PEER` to it, a connection each.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

type conn interface {
	net.Conn
	CloseWrite() error
}

func main() {
	from, to := [2]string{"tcp", "127.0.0.1:0"}, [2]string{"unix", os.Args[2]}
	if os.Args[1] == "near" {
		from, to = [2]string{"unix", os.Args[2]}, [2]string{"tcp", os.Args[3]}
	}
	listener, err := net.Listen(from[0], from[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "listening on %s\n", listener.Addr())
	for {
		accepted, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go carry(accepted.(conn), to)
	}
}

func carry(accepted conn, to [2]string) {
	defer accepted.Close()
	dialed, err := net.Dial(to[0], to[1])
	if err != nil {
		return
	}
	defer dialed.Close()
	there := make(chan struct{})
	go func() {
		copyToEnd(dialed.(conn), accepted)
		close(there)
	}()
	copyToEnd(accepted, dialed.(conn))
	<-there
}

func copyToEnd(to, from conn) {
	io.Copy(to, from)
	to.CloseWrite()
}
