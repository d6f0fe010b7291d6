-- Rules of this gateway: what is to be done with what the devices say. All *.sql in this folder are read, and read again when they change.
-- Try them out: ferrule-edge rules check /etc/ferrule/rules

-- Everything to the cloud; needs [uplink] in edge.toml:
-- CREATE RULE everything AS INSERT INTO cloud SELECT * FROM "#";
