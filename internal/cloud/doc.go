// Package cloud is the domain: what a Sampan cluster consists of, as specifications (what somebody asked for) and status
// (what is). It validates and compares; it stores, sends and does nothing. It imports the standard library and fault
// only, and knows neither Docker's wire types nor how state is kept.
//
// Times are UTC. Sizes are bytes, CPU is in billionths of a core (nano CPUs), durations are time.Duration.
// Every address field is a list, so that IPv6 needs no second shape.
package cloud
