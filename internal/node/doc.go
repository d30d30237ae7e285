// Package node is the composition root: it builds everything a host runs from one Config, starts it in order, hands each
// part what it needs through small interfaces, and ends it without harm to any container.
package node
