// One end of a TLS connection by Go's crypto/tls: go_peer server|client, with the flags below.
// A server echoes, prints its port and serves until its standard input ends. A client sends a file,
// ends, and checks that the same comes back; then it does so once more per -again.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

var (
	cert    = flag.String("cert", "", "PEM file with key and certificate")
	ca      = flag.String("ca", "", "PEM file of the authority")
	mutual  = flag.Bool("mutual", false, "server: insist on a certificate")
	version = flag.String("version", "1.3", "1.2 or 1.3")
	alpn    = flag.String("alpn", "", "protocols, with commas")
	port    = flag.Int("port", 0, "client: where to connect")
	name    = flag.String("name", "server.example", "client: whom to expect")
	send    = flag.String("send", "", "client: what to send")
	again   = flag.Int("again", 0, "client: connections after the first one, with its session")
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func config() *tls.Config {
	versions := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
	c := &tls.Config{
		MinVersion: versions[*version],
		MaxVersion: versions[*version],
		ServerName: *name,
	}
	if *alpn != "" {
		c.NextProtos = strings.Split(*alpn, ",")
	}
	if *cert != "" {
		pem, err := os.ReadFile(*cert)
		must(err)
		pair, err := tls.X509KeyPair(pem, pem)
		must(err)
		c.Certificates = []tls.Certificate{pair}
	}
	pem, err := os.ReadFile(*ca)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c.RootCAs, c.ClientCAs = pool, pool
	if *mutual {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

func report(c *tls.Conn) {
	state := c.ConnectionState()
	fmt.Printf("{\"resumed\": %t, \"alpn\": \"%s\", \"peers\": %d}\n",
		state.DidResume, state.NegotiatedProtocol, len(state.PeerCertificates))
}

func echo(c *tls.Conn) {
	defer c.Close()
	if err := c.Handshake(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	report(c)
	if _, err := io.Copy(c, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func serve(c *tls.Config) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Printf("{\"port\": %d}\n", listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := listener.Accept()
		must(err)
		go echo(tls.Server(conn, c))
	}
}

func talk(c *tls.Config, data []byte) {
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", *port), c)
	must(err)
	report(conn)
	sent := make(chan bool)
	go func() {
		_, err := conn.Write(data)
		must(err)
		must(conn.CloseWrite())
		close(sent)
	}()
	back, err := io.ReadAll(conn)
	must(err)
	<-sent
	if !bytes.Equal(back, data) {
		must(fmt.Errorf("%d other bytes came back", len(back)))
	}
	conn.Close()
}

func main() {
	must(flag.CommandLine.Parse(os.Args[2:]))
	c := config()
	if os.Args[1] == "server" {
		serve(c)
	}
	data, err := os.ReadFile(*send)
	must(err)
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for i := 0; i <= *again; i++ {
		talk(c, data)
	}
}
